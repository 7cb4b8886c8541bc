"""Definitions, one click away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word of the page and what it means."""

    name: str
    meaning: str


WORDS: dict[str, Word] = {
    "sage": Word(
        "SAGE",
        "Sensitivity-guided adaptive learning rate (Liang et al., ICLR 2022, arXiv 2202.02664): it "
        "multiplies the lr of every parameter by a factor of its own at every step.",
    ),
    "parameter": Word(
        "parameter",
        "One of the numbers that a network consists of and that training adjusts. Also called a "
        "weight.",
    ),
    "lr": Word(
        "lr",
        "Learning rate: how large a step training takes. The schedule of the recipe raises it at "
        "the start and lowers it to the end; the lr given here is its highest value.",
    ),
    "beta0": Word(
        "β0",
        "How long SAGE remembers sensitivity, from 0 (not at all) to 1. The average goes back "
        "about 1 / (1 − β0) steps.",
    ),
    "sensitivity": Word(
        "sensitivity",
        "I = |θ·g|, a parameter times its gradient: about how much the loss would change if the "
        "parameter were set to zero. Low: the model hardly uses it.",
    ),
    "smoothed": Word(
        "smoothed sensitivity",
        "Ī ← β0·Ī + (1 − β0)·I: a running average, since one batch of data says little.",
    ),
    "variation": Word(
        "variation",
        "U = |I − Ī|: how far sensitivity is from its recent average, and so how uncertain.",
    ),
    "multiplier": Word(
        "multiplier",
        "r = (U + ε) / (Ī + ε): the factor that SAGE puts on a parameter's lr. With x = I / Ī "
        "before the step it is β0·|x − 1| / (β0 + (1 − β0)·x): 0 where sensitivity is as usual, 1 "
        "where it vanishes. It cannot exceed 1 or β0 / (1 − β0), whichever is larger.",
    ),
    "frozen": Word("frozen", "Share of parameters with a multiplier under 0.01 at that step."),
    "boosted": Word("boosted", "Share of parameters with a multiplier above 1 at that step."),
    "base": Word(
        "base optimizer",
        "The optimizer whose steps SAGE scales, and which it is compared with: AdamW, Adamax or "
        "SGD.",
    ),
    "arm": Word("arm", "One side of a comparison: an optimizer with its options and its grid."),
    "recipe": Word(
        "recipe",
        "The file that says what is trained, with which arms, and how they are compared.",
    ),
    "seed": Word(
        "seed",
        "The number that fixes everything random in a training: first weights and order of the "
        "data. Both arms are trained with the same seeds, so that pair by pair they differ in the "
        "optimizer alone. Seeds that tuned the settings are not used to compare them.",
    ),
    "splits": Word(
        "splits",
        "Data are divided once: on the training split the model learns, the validation split "
        "chooses settings, and the test split is scored once, at the end of each reported run.",
    ),
    "paired": Word(
        "paired difference",
        "Score of the sage arm minus score of its base with the same seed, averaged over seeds.",
    ),
    "interval": Word(
        "95% interval",
        "Student's interval for the mean difference. Of a hundred studies like this one, about 95 "
        "would have the true difference inside theirs.",
    ),
    "p": Word(
        "p-value",
        "How often a difference at least so large would turn up if there were none (paired t-test, "
        "two-sided).",
    ),
    "detectable": Word(
        "smallest detectable difference",
        "The true difference that this many seeds would have found in four cases of five, given "
        "how much they vary.",
    ),
    "effect": Word(
        "effect size",
        "d_z: the mean of the paired differences divided by their standard deviation. It is larger "
        "than Cohen's d where the scores of both arms go up and down together (a correlation above "
        "0.5).",
    ),
    "sd": Word("sd", "Standard deviation over the seeds (n − 1)."),
    "margin": Word(
        "margin",
        "The difference below which it does not matter which arm is better, set in the recipe "
        "before any run.",
    ),
    "verdict": Word(
        "verdict",
        "Better or worse: the 95% interval excludes zero. Equivalent: the 90% interval lies inside "
        "the margin (two one-sided tests at 5%). Inconclusive: neither.",
    ),
    "looks": Word(
        "looks",
        "At which numbers of seeds a finished report was read. One look is what a p-value "
        "supposes.",
    ),
    "memory": Word("peak memory", "The most that the process of one training held, data included."),
    "by_loss": Word(
        "divided by the loss",
        "Sensitivity divided by the loss that it was measured at. A model with a lower loss has "
        "smaller gradients throughout; this takes most of that out.",
    ),
    "gini": Word(
        "Gini coefficient",
        "How unevenly sensitivity is spread: 0 if every parameter has as much as any other, near 1 "
        "if a few have nearly all.",
    ),
    "effective": Word(
        "effective parameters",
        "The participation ratio (ΣI)² / ΣI²: how many parameters of equal sensitivity would "
        "concentrate it as much.",
    ),
    "below": Word(
        "share below",
        "Share of parameters whose sensitivity is at most so many times the median: a reserve that "
        "the model hardly uses.",
    ),
    "sparsity": Word(
        "sparsity",
        "Share of the weights (or heads, or neurons) of attention and feed-forward that are set to "
        "zero.",
    ),
    "keeps99": Word(
        "keeps 99%",
        "The largest sparsity up to which every point of the curve has at least 99% of the score "
        "of the whole model (where lower is better: at most 1/99% of it).",
    ),
    "scores": Word(
        "pruning scores",
        "What decides which weights go first. Sensitivity: |θ·g|, averaged. Magnitude: |θ|. "
        "Sensitivity-variation: Ī·U. Upper-confidence: Ī + U, as in PLATON.",
    ),
    "matched": Word(
        "matched loss",
        "Both runs at the level of the loss that both have reached: of each, the checkpoint whose "
        "loss is nearest to that level.",
    ),
}
