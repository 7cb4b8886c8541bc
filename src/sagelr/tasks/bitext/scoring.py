"""Scores of translations: BLEU and chrF by sacreBLEU, with the signatures that say what they are.

"A Call for Clarity in Reporting BLEU Scores", Post, WMT 2018. BLEU of text in words as others cut
it (Moses' tokens, say) has tok:none in its signature: this is the tokenized BLEU that IWSLT'14 is
reported in, the number of multi-bleu.perl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sagelr.errors import UsageError
from sagelr.tasks import Metric

Words = Literal["13a", "none", "intl", "char", "zh", "ja-mecab", "ko-mecab"]

METRICS = {
    "bleu": Metric("bleu", label="BLEU"),
    "chrf": Metric("chrf", label="chrF"),
    "exact_match": Metric("exact_match", scale=100, unit="%", label="exact match"),
    "token_accuracy": Metric("token_accuracy", scale=100, unit="%", label="token accuracy"),
}


class Scorer:
    """BLEU, chrF and the share of exact matches."""

    def __init__(self, words: Words, *, lowercase: bool) -> None:
        """Choose what is counted.

        Args:
            words: how BLEU cuts text into words; "none" for text in words already.
            lowercase: whether case is ignored.

        Raises:
            UsageError: a package for these words is missing.
        """
        from sacrebleu.metrics import BLEU, CHRF  # pyright: ignore[reportPrivateImportUsage]

        self._lowercase = lowercase
        # force: no warning that text looks tokenized, which it may well be.
        try:
            self._bleu = BLEU(tokenize=words, lowercase=lowercase, force=True)
        except RuntimeError as error:  # these words need a package of their own
            raise UsageError(
                f"task.bleu_words = {words!r}: {' '.join(str(error).split())}"
            ) from None
        self._chrf = CHRF(lowercase=lowercase)

    def __call__(self, found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
        """Scores of a whole split.

        Args:
            found: translations.
            wanted: the reference of each.

        Examples:
            >>> scorer = Scorer("13a", lowercase=False)
            >>> scorer(["Two men."] * 2, ["Two men.", "A dog."])["exact_match"]
            0.5
        """
        same = sum(map(self._equal, found, wanted))
        return {
            "bleu": self._bleu.corpus_score(found, [wanted]).score,
            "chrf": self._chrf.corpus_score(found, [wanted]).score,
            "exact_match": same / len(wanted),
        }

    def _equal(self, found: str, wanted: str) -> bool:
        return found.lower() == wanted.lower() if self._lowercase else found == wanted

    def describe(self) -> dict[str, str]:
        """What each score is; for BLEU and chrF, sacreBLEU's signature."""
        case = "case ignored" if self._lowercase else "case and all"
        self._bleu.num_refs = self._chrf.num_refs = 1  # known to them only after a first score
        return {
            "bleu": str(self._bleu.get_signature()),
            "chrf": str(self._chrf.get_signature()),
            "exact_match": f"share of translations equal to the reference, {case}",
            "token_accuracy": "share of reference tokens that are the likeliest one after those "
            "before them",
        }
