"""The page as text: what it says of a study, and that it is safe and whole."""

import json
import os
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from transformers import ViTConfig, ViTForImageClassification

from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import load, parse_override
from sagelr.report import tables, verdict, write_report
from sagelr.report.charts import sage as drawn
from sagelr.report.page import GENERATOR
from sagelr.report.study import Study
from sagelr.report.wording import setting

LIMIT = 6_000_000
SCRIPTS = 5  # theme, figures, Plotly, tables, charts
FAILED = {"validation": None, "test": None, "train": None}


class Page(HTMLParser):
    """Text and elements of a page, scripts and styles apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.scripts = html, [], []
        self._words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self._words).replace("\u00a0", " ").split())
        self.figures = json.loads(self.scripts[1])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self._words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def show(tmp_path):
    def write(*sources) -> Page:
        out = write_report(sources, tmp_path / "report.html")
        return Page(out.read_text(encoding="utf-8"))

    return write


# -- what it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "verdict", "said"),
    [
        ({"gap": 0.02}, "better", "SageAdamW is better than AdamW, by 1.9"),
        ({"gap": -0.02}, "worse", "SageAdamW is worse than AdamW, by 2.0"),
        ({}, "equivalent", "No difference found: SageAdamW and AdamW score alike."),
        ({"gap": 0.003, "spread": 0.001}, "equivalent", "No difference that matters"),
        ({"gap": 0.008, "spread": 0.02}, "inconclusive", "neither shown nor ruled out"),
    ],
)
def test_each_verdict_comes_first_in_plain_words(study, show, figures, verdict, said):
    document = study(**figures)
    page = show(document)
    assert document["comparison"]["verdict"] == verdict
    assert said in page.text
    first = min(page.text.index(word) for word in ("Scores One", "Training How"))
    assert page.text.index(said) < page.text.index("What to try next") < first
    low, high = document["comparison"]["difference"]["ci95"]
    assert f"95% interval {100 * low:+.2f} to {100 * high:+.2f}".replace("-", "−") in page.text


def test_what_to_try_next_fits_the_verdict(study, show):
    better = show(study(gap=0.02)).text
    assert "optimizer = SageAdamW(param_groups(model, weight_decay=0.01), lr=" in better
    unclear = study(gap=0.008, spread=0.02)
    needed = unclear["comparison"]["seeds_needed"]
    assert f"sagelr compare digits-vit --seeds {needed}" in show(unclear).text
    unclear["command"] = "sagelr compare digits-vit --set study.report_seeds=10"
    assert f"sagelr compare digits-vit --seeds {needed}" in show(unclear).text
    assert "Stay with AdamW on this task." in show(study(gap=-0.02)).text


@pytest.mark.parametrize("role", ["variant", "sage"])
def test_the_code_of_two_rates_makes_them(study, show, role):
    document = study(gap=0.02)
    options = {"betas": [0.9, 0.98], "weight_decay": 0.01}
    change = {"role": role, "scope_lr_scale": 0.5, "options": options}
    name = "SageAdamW" if role == "sage" else "AdamW"
    document["recipe"]["arms"]["sage-adamw"] |= change | {"optimizer": name}
    document["arms"]["sage-adamw"] |= {"role": role, "optimizer": name}
    document["tuning"]["sage-adamw"]["chosen"] = {"lr": 0.004}
    code = re.search(r"<code>(from [^<]*param_groups.*?)</code>", show(document).html, re.DOTALL)[1]
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTForImageClassification(ViTConfig(**size, intermediate_size=8))
    made = {"model": model}
    exec(unescape(code), made)
    optimizer = made["optimizer"]
    assert type(optimizer).__name__ == name
    assert [(group["sage"], group["lr"]) for group in optimizer.param_groups] == [
        (True, 0.002), (True, 0.002), (False, 0.004), (False, 0.004)
    ]  # fmt: skip


def code_of(html):
    return unescape(re.search(r"<code>(from [^<]*param_groups.*?)</code>", html, re.DOTALL)[1])


def test_the_code_says_the_decay_that_was_trained(study, show):
    document = study(gap=0.02)
    document["recipe"]["arms"]["sage-adamw"] |= {"optimizer": "SageSGD", "options": {}}
    for run in document["runs"]:
        run["options"]["groups"] = [{"weight_decay": 0}, {"weight_decay": 0.0}]
    assert "param_groups(model, weight_decay=0)" in code_of(show(document).html)


def test_the_code_of_a_control_imports_it(study, show):
    document = study(gap=0.02)
    arm = document["recipe"]["arms"]["sage-adamw"]
    arm |= {"optimizer": "ControlAdamW", "options": {"control": "shuffled"}}
    made = {}
    exec("\n".join(code_of(show(document).html).split("\n")[:2]), made)
    assert made["ControlAdamW"].__module__ == "sagelr.optim.controls"


def test_a_variant_is_not_told_as_sage(study, show):
    document = study()
    for arms in (document["recipe"]["arms"], document["arms"]):
        arms["sage-adamw"] |= {"role": "variant", "optimizer": "AdamW"}
    text = show(document).text
    assert "it has one learning rate less to choose" in text
    assert "keeps less state" not in text
    assert "SAGE's authors report" not in text
    document["comparisons"][0]["verdict"] = "worse"
    text = show(document).text
    assert "A finer grid for both arms alike" in text
    assert "authors found β0" not in text


def test_the_page_is_there_from_the_first_run_on(study, show):
    page = show(study(status="tuning", tuned=1, looks=[]))
    assert "Still tuning: no verdict yet." in page.text
    assert "1 of 36 runs" in page.text
    assert {"loss", "lr"} <= page.figures.keys()
    assert page.all("progress")


def test_a_comparison_that_is_not_finished_is_no_verdict(study, show):
    page = show(study(gap=0.02, status="reporting", seeds=4, looks=[]))
    assert "After 4 of 10 seeds: SageAdamW is better" in page.text
    assert "Nothing is decided yet." in page.text
    assert "Wait for the rest." in page.text
    assert "optimizer = " not in page.text
    assert "A verdict takes two seeds" in show(study(status="reporting", seeds=1, looks=[])).text


def test_a_smoke_run_proves_nothing(study, show):
    command = "sagelr compare digits-vit --quick --out runs/try --jobs 2"
    document = study(gap=0.02, quick=True, command=command)
    page = show(document)
    assert "A smoke run: it ran through, and proves nothing." in page.text
    assert "SageAdamW is better" not in page.text
    assert "sagelr compare digits-vit --jobs 2" in page.text


def test_runs_that_ended_badly_are_told(study, show):
    def spoil(run):
        if run["stage"] == "tune" and run["setting"]["lr"] >= 0.008:
            run |= {"status": "diverged", "error": "training loss nan", "scores": FAILED}
        if run["stage"] == "report" and run["seed"] == 1003 and run["arm"] == "adamw":
            run |= {"status": "failed", "error": "killed", "scores": FAILED, "curve": []}
            run |= {"sage": None, "seconds": None, "peak_memory_mib": None}

    page = show(study(spoil=spoil))
    assert "Undecided: some runs did not end with a score." in page.text
    assert "1 run of AdamW (seed 1003) ended without a score: killed." in page.text
    assert "tuning runs diverged or failed" in page.text
    assert "1 failed, " in page.text
    assert any(t.get("marker", {}).get("symbol") == "x-thin" for t in page.figures["lr"]["data"])


def test_what_equivalence_goes_by_is_shown(study, show):
    """A 95% interval may reach beyond the margin that the 90% interval lies within."""
    document = study(gap=0.005, spread=0.004, seeds=5)
    gap = document["comparison"]["difference"]
    assert document["comparison"]["verdict"] == "equivalent"
    page = show(document)
    low, high = (f"{100 * value:+.2f}".replace("-", "−") for value in gap["ci90"])
    assert f"its 90% interval, {low} to {high}, lies within the margin" in page.text
    (thick,) = (d for d in page.figures["difference-1"]["data"] if d["name"] == "90% interval")
    assert thick["x"] == pytest.approx([100 * value for value in gap["ci90"]])
    if document["comparison"]["significant"]:
        assert "to be lost by either choice" not in page.text


def test_a_study_that_was_ended_early_is_told(study, show):
    document = study()
    assert "asked for at first" not in show(document).text
    text = show(document | {"planned": 20}).text
    assert "Read once, at 10 seeds. 20 seeds were asked for at first." in text
    assert "20 seeds were asked for at first, and the study was ended with fewer" in text


def test_looking_twice_and_an_optimum_on_the_edge_are_told(study, show):
    document = study(looks=[4, 10])
    document["tuning"]["sage-adamw"]["on_edge"] = True
    text = show(document).text
    assert "The report was read more than once, at 4 and 10 seeds." in text
    assert "The best lr of SageAdamW is still at the end of its grid" in text


def test_an_arm_that_was_not_tried_where_its_base_is_best_is_told(study, show):
    document = study(gap=-0.02)
    said = "SageAdamW was tried from lr 0.002 up alone, and the best of AdamW is 0.001."
    assert "was tried from lr" not in show(document).text
    document["tuning"]["adamw"]["chosen"] = {"lr": 0.001}
    assert said not in show(document).text  # it is ahead, wherever it was tried
    for run in document["runs"]:
        if (run["stage"], run["arm"]) == ("tune", "sage-adamw"):
            run["scores"]["validation"]["loss"] += 1
    text = show(document).text
    assert said in text
    assert "a grid that begins at AdamW's best lr" in text
    # What to do about it is a command, and does what it says.
    assert "Stay with AdamW on this task." not in text
    assert "Until then, stay with AdamW." in text
    code = re.search(r"<code>(sagelr compare[^<]*)</code>", show(document).html)[1]
    words = shlex.split(unescape(code))
    change = words[words.index("--set") + 1]
    again = load("digits-vit", dict([parse_override(change)]))
    assert again.arms["sage-adamw"].grid == {"lr": [0.001, 0.002], "beta0": [0.6, 0.8]}
    assert words[words.index("--reuse") + 1] == "runs/digits-vit"
    assert words[words.index("--out") + 1] == "runs/digits-vit-2"
    document["comparisons"][0]["verdict"] = "inconclusive"
    assert code in show(document).html
    # It has as many settings as the base, also where the arm followed its base before.
    document["recipe"]["arms"]["adamw"]["grid"] = {"lr": [1e-3, 2e-3, 4e-3]}
    document["recipe"]["arms"]["sage-adamw"]["grid"] = {"lr_ratio": [4, 8, 16]}
    code = re.search(r"<code>(sagelr compare[^<]*)</code>", show(document).html)[1]
    words = shlex.split(unescape(code))
    assert parse_override(words[words.index("--set") + 1])[1] == {"lr": [0.0005, 0.001, 0.002]}


def test_where_a_grid_began_is_told(study, show):
    assert "SageAdamW began at multiples of AdamW's best lr, 0.002." in show(study()).text


def test_runs_that_come_out_well_or_badly_by_chance_are_told(study, show):
    document = study()
    said = "At its setting SageAdamW trains well with some seeds and badly with others"
    assert said not in show(document).text
    for run in document["runs"]:
        if run["stage"] == "report" and run["arm"] == "sage-adamw" and run["seed"] % 2:
            run["scores"]["test"]["accuracy"] = 0.5
    assert said in show(document).text


def test_a_choice_that_another_seed_would_not_have_made_is_told(study, show):
    document = study()
    said = "a setting that was not chosen did better"
    assert said not in show(document).text  # luck is the same for every setting
    [run] = [
        run
        for run in document["runs"]
        if (run["stage"], run["arm"], run["seed"]) == ("tune", "adamw", 1)
        and run["setting"] == {"lr": 0.004}
    ]
    run["scores"]["validation"]["loss"] = 0.0
    text = show(document).text
    assert f"{said}, for AdamW (lr 0.004)." in text


def test_many_comparisons_are_shown_in_one_figure(study, show):
    document = study(gap=0.02)
    [first] = document["comparisons"]
    document["comparisons"] = [first | {"p_holm": 0.03, "holm_of": 4} for _ in range(4)]
    document["comparisons"][3] |= {"verdict": "worse"}
    page = show(document)
    assert page.text.count("What to try next") == 1
    assert "All 4 comparisons: 3 better and 1 worse" in page.text
    bars = page.figures["differences"]["data"]
    assert [bar["x"] for bar in bars] == [[100 * first["difference"]["mean"]]] * 4
    low = 100 * (first["difference"]["mean"] - first["difference"]["ci95"][0])
    assert bars[0]["error_x"]["arrayminus"] == [pytest.approx(low)]


def test_corrections_are_told_where_results_have_them(study, show):
    document = study(gap=0.02)
    found = document["comparisons"][0]
    found["examples_ci95"] = [-0.01, 0.05]
    alone = "the interval for SageAdamW and AdamW would be −1.00 to +5.00."
    assert alone in show(document).text
    document["comparisons"].append(found | {"p_holm": 0.03, "holm_of": 2})
    document["comparisons"][1]["examples_ci95"] = [-0.02, 0.06]
    text = show(document).text
    assert text.count("The 95% interval takes the test split as given.") == 1
    both = "SageAdamW and AdamW −1.00 to +5.00; SageAdamW and AdamW −2.00 to +6.00."
    assert f"the intervals would be: {both}" in text
    assert "After Holm's correction the p-values are: SageAdamW 0.03." in text
    assert text.count("What to try next") == 2


def test_scores_and_their_loss_are_told_apart(study, show):
    document = study(gap=0.02)
    document["recipe"]["metric"] |= {"name": "rmse", "scale": 1, "unit": ""}
    document["recipe"]["metric"]["greater_is_better"] = False
    for run in document["runs"]:
        for scores in run["scores"].values():
            if scores and "accuracy" in scores:
                scores["rmse"] = scores.pop("accuracy")
    text = show(document).text
    assert "(lower is better)" in text
    assert not re.search(r"\d points", text)


def test_a_few_seeds_that_are_alike_are_told_as_such(study, show):
    def alike(run):
        for scores in (run["scores"]["validation"], run["scores"]["test"]):
            if scores:
                scores["accuracy"] = 0.75 if run["arm"] == "sage-adamw" else 0.5

    text = show(study(seeds=3, spoil=alike)).text
    assert "The difference of +25.00 points is the same for every seed. All 3 differences" in text
    assert "the same for each of 3 seeds" in text
    assert "includes zero" not in text
    assert "would have been found" not in text

    def same(run):
        for scores in (run["scores"]["validation"], run["scores"]["test"]):
            if scores:
                scores["accuracy"] = 0.5

    assert show(study(spoil=same)).figures["seeds"]["title"] == "All scores are alike"


def test_a_selector_that_is_an_error_is_lowest_at_its_best(study, show):
    document = study()
    document["recipe"]["study"]["select_by"] = "rmse"
    document["selector"] = {"name": "rmse", "scale": 1.0, "unit": " K", "greater_is_better": False,
                            "label": "RMSE"}  # fmt: skip
    for run in document["runs"]:
        run["scores"]["validation"]["rmse"] = run["scores"]["validation"]["loss"]
    title = show(document).figures["lr"]["title"]
    assert title.startswith("Lowest validation RMSE: ")


# -- safe, whole, and on its own ----------------------------------------------------------------


def test_hostile_names_are_shown_and_not_run(study, show, hostile):
    document = study(command=hostile, overrides={hostile: hostile})
    document["recipe"]["title"] = document["recipe"]["description"] = hostile
    document["recipe"]["metric"]["name"] = document["data"]["name"] = hostile
    for arm in document["arms"].values():
        arm["label"] = hostile
    for run in document["runs"]:
        run["error"] = hostile
        for scores in run["scores"].values():
            if scores and "accuracy" in scores:
                scores[hostile] = scores.pop("accuracy")
        if run["sage"]:
            for layer in run["sage"]["layers"]:
                layer["name"] = layer["kind"] = hostile
            for look in run["sage"]["history"]:
                look["multiplier"] = {hostile: 0.5}
    page = show(document)
    assert len(page.scripts) == SCRIPTS
    assert not page.all("b")
    assert hostile in page.text
    # Plotly reads some HTML in its texts.
    drawn = json.dumps(page.figures)
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn
    # What would be filled in by Plotly's own templates is never a name.
    templates = [t.get("hovertemplate", "") for f in page.figures.values() for t in f["data"]]
    assert not any("alert" in template for template in templates)


def test_nothing_but_the_pages_own_scripts_may_run_and_nothing_is_fetched(study, show):
    page = show(study())
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == SCRIPTS - 1  # data are not run
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    outer = {name: value for _, attrs in page.tags for name, value in attrs.items()}
    assert not {"src", "srcset"} & outer.keys()
    assert all(attrs["href"].startswith("#") for attrs in page.all("a"))


def test_the_page_stays_under_its_limit(study, show):
    document = study(gap=0.02)
    runs = document["runs"]
    document["runs"] = [r | {"seed": r["seed"] + 10_000 * i} for i in range(30) for r in runs]
    for run in runs:
        run["curve"] = [run["curve"][0] | {"epoch": float(i)} for i in range(2000)]
        if run["sage"]:
            run["sage"]["scatter"] = run["sage"]["scatter"] * 40
            run["sage"]["layers"] = run["sage"]["layers"] * 20
    document["runs"][: len(runs)] = runs
    page = show(document)
    assert len(page.html.encode()) < LIMIT
    assert "runs are in results.json" in page.text


def test_numbers_that_are_none_do_not_break_the_page(study, show):
    document = study()
    document["runs"][0]["curve"][3]["validation_loss"] = None
    document["runs"][-1]["curve"][3]["train_loss"] = float("inf")
    document["comparisons"][0]["difference"]["effect_size"] = None
    page = show(document)
    assert "Infinity" not in page.scripts[1]


# -- figures ------------------------------------------------------------------------------------


def test_plotly_takes_every_figure(study, audit, run_audit, show):
    def measure(run):
        if run["stage"] == "report":
            run["audit"] = run_audit(run["seed"])

    page = show(study(spoil=measure), audit)
    css = page.html.partition("<style>")[2].partition("</style>")[0]
    known = set(re.findall(r"^\s+(--[\w-]+):", css, re.MULTILINE))

    def paint(value):
        if isinstance(value, dict):
            return {key: paint(each) for key, each in value.items()}
        if isinstance(value, list):
            return [paint(each) for each in value]
        if isinstance(value, str) and value.startswith("--"):
            assert value.partition("/")[0] in known
            return "#123456"
        return value

    assert len(page.figures) > 25
    for figure in page.figures.values():
        go.Figure(data=paint(figure["data"]), layout=paint(figure["layout"]))
        assert figure["title"]
        for axis in ("xaxis", "yaxis"):
            named = "title" in figure["layout"][axis] or "ticktext" in figure["layout"][axis]
            assert named or figure["layout"][axis].get("visible") is False
    drawn = {attrs["data-figure"] for attrs in page.all("div") if "data-figure" in attrs}
    assert drawn == page.figures.keys()


def test_learning_curves_are_means_over_seeds(study, show):
    document = study(gap=0.02)
    page = show(document)
    lines = {trace.get("name"): trace for trace in page.figures["metric"]["data"]}
    ends = [run["curve"][-1]["validation_accuracy"] for run in document["runs"]
            if run["stage"] == "report" and run["arm"] == "adamw"]  # fmt: skip
    assert lines["AdamW"]["y"][-1] == pytest.approx(100 * sum(ends) / len(ends), rel=1e-4)
    assert len(lines["AdamW"]["x"]) == 15


def test_a_metric_that_is_decoded_at_the_end_has_no_curve(study, show):
    document = study()
    for run in document["runs"]:
        for row in run["curve"]:
            del row["validation_accuracy"]
    page = show(document)
    assert "loss" in page.figures
    assert "metric" not in page.figures


def test_a_metric_that_tuning_does_without_has_no_column_there(study, show):
    document = study()
    assert "mean loss mean accuracy seeds" in show(document).text
    for run in document["runs"]:
        if run["stage"] == "tune":
            del run["scores"]["validation"]["accuracy"]
    page = show(document)
    assert "mean loss seeds" in page.text
    assert "validation loss validation accuracy test accuracy" in page.text


def test_a_metric_is_called_as_people_call_it(study, show):
    document = study(gap=0.02)
    document["recipe"]["metric"]["label"] = "BLEU"
    page = show(document)
    assert "points of test BLEU" in page.text
    assert "mean BLEU" in page.text
    assert "accuracy" not in page.text
    assert page.figures["lr-metric"]["title"] == "The same runs by BLEU"


def test_every_beta0_has_its_own_line(study, show):
    drawn = show(study()).figures["lr"]["data"]
    names = [trace["name"] for trace in drawn if "lines" in trace["mode"]]
    assert names == ["AdamW", "SageAdamW, β0\u00a00.6", "SageAdamW, β0\u00a00.8"]


def test_the_drawn_rule_is_the_rule(study, show):
    curve = show(study()).figures["rule-1"]["data"][0]
    beta0 = float(curve["name"].rpartition(" ")[2])
    for x, r in zip(curve["x"], curve["y"], strict=True):
        assert r == pytest.approx(beta0 * abs(x - 1) / (beta0 + (1 - beta0) * x), abs=1e-4)


def test_a_relative_multiplier_is_not_held_to_the_rule(study, show):
    def relative(run):
        run["options"]["relative"] = 0.5

    figure = show(study(spoil=relative)).figures["rule-1"]
    assert len(figure["data"]) == 1
    assert "within each tensor" in figure["title"]


# -- words and files ----------------------------------------------------------------------------


def test_every_definition_that_is_asked_for_is_there(study, audit, show):
    page = show(study(), audit)
    ids = {attrs.get("id") for _, attrs in page.tags}
    targets = {attrs["popovertarget"] for attrs in page.all("button") if "popovertarget" in attrs}
    assert len(targets) > 20
    assert targets <= ids
    links = {attrs["href"][1:] for attrs in page.all("a")}
    assert links <= ids
    assert len([attrs["id"] for _, attrs in page.tags if "id" in attrs]) == len(ids - {None})


def test_it_says_how_it_was_made(study, show):
    document = study(overrides={"train.epochs": 15})
    text = show(document).text
    for told in (
        document["command"],
        "train.epochs = 15",
        "Invented here.",
        "1,000 train, 300 validation and 497 test",
        "seeds 1000–1009",
        "a CPU, AVX2, 2 cores, 8 GiB, Linux",
        "torch 2.13.0",
        "Read once, at 10 seeds.",
        document["data"]["sha256"],
    ):
        assert told in text


def test_runs_of_another_machine_are_told_and_times_are_not_compared(study, show):
    def brought(run):
        if run["arm"] == "sage-adamw":
            run["seconds"] = 60.0
            run["versions"] = {"torch": "2.12.0"}
            if run["stage"] == "report":
                run["machine"] = {"processor": "a CPU", "vectors": "AVX512", "cores": 2}

    here = show(study(gap=0.02, spread=0.005)).text
    assert "different machines" not in here
    assert "but 10 runs" not in here
    document = study(gap=0.02, spread=0.005, spoil=brought)
    old = sum("versions" in run for run in document["runs"])
    text = show(document).text
    assert "report runs were made on different machines" in text
    assert "but 10 runs a CPU, AVX512, 2 cores" in text
    assert f"but {old} runs torch 2.12.0" in text
    assert "Weigh the gain against the time" not in text

    def slower(run):
        run["seconds"] = 60.0 if run["arm"] == "sage-adamw" else 4.2

    assert (
        "Weigh the gain against the time" in show(study(gap=0.02, spread=0.005, spoil=slower)).text
    )


def test_settings_replaced_are_those_in_force(study):
    """A study may go on with more seeds than it began with."""
    document = study(overrides={"study.report_seeds": 4, "task.no_such_thing": 1})
    assert document["recipe"]["study"]["report_seeds"] == 10
    assert document["overrides"] == {"study.report_seeds": 10, "task.no_such_thing": 1}


def test_a_page_is_replaced_and_another_file_is_not(study, tmp_path):
    document = study()
    out = write_report(document, tmp_path / "report.html")
    assert GENERATOR in out.read_text()
    write_report(document, out)
    other = tmp_path / "thesis.html"
    other.write_text("<p>mine")
    with pytest.raises(SagelrError, match="not a page of sagelr's"):
        write_report(document, other)
    assert other.read_text() == "<p>mine"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a page of sagelr's"):
        write_report(document, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "pipe").unlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "thesis.html"]


def test_an_unwritable_place_is_named(study, tmp_path):
    with pytest.raises(OSError, match=r"report\.html") as error:
        write_report(study(), tmp_path / "nowhere" / "report.html")
    assert Path(error.value.filename) == tmp_path / "nowhere" / "report.html"


def test_means_stand_beside_the_arms_they_are_of(study, show):
    document = study(gap=0.02)
    means = {name: arm["mean"] for name, arm in document["comparison"]["arms"].items()}
    said = (
        f"SageAdamW reaches {100 * means['sage-adamw']:.2f}% test accuracy and AdamW "
        f"{100 * means['adamw']:.2f}%"
    )
    assert said in show(document).text


def test_facts_are_told_with_their_own_setting_and_size(study):

    document = study(gap=0.02)
    found = Study(document)
    sage, base, gap, smallest = verdict.verdicts(found)[0].facts
    for fact, name in ((sage, "sage-adamw"), (base, "adamw")):
        assert fact.about.endswith(setting(document["tuning"][name]["chosen"]))
    assert smallest.value == found.scale.amount(document["comparison"]["smallest_detectable"])
    assert gap.value == found.scale.change(document["comparison"]["difference"]["mean"])


def test_a_gain_that_may_be_below_the_margin_is_told_as_such(study, show):
    document = study(gap=0.02)
    said = "though it may be smaller than the 5 points the recipe calls relevant"
    assert "though it may be smaller" not in show(document).text
    document["comparisons"][0]["margin"] = 0.05
    assert said in show(document).text.replace("\u00a0", " ")


def test_tables_hold_what_was_found(study):
    """Also for what is sorted and exported by: in the units that are shown, with its sign."""

    document = study(gap=0.02)
    [entry] = document["comparisons"]
    entry["gain"] = -entry["difference"]["mean"]  # as where lower is better
    found, gap = Study(document), entry["difference"]
    by_seed = tables.by_seed(found)
    base, sage = (entry["arms"][name]["values"] for name in ("adamw", "sage-adamw"))
    for row, b, s in zip(by_seed.rows, base, sage, strict=True):
        wanted = [100 * b, 100 * s, 100 * (s - b)]
        assert [cell.value for cell in row[1:]] == pytest.approx(wanted)
    first, second = tables.scores(found).rows
    for row, name in ((first, "adamw"), (second, "sage-adamw")):
        arm = entry["arms"][name]
        wanted = [100 * arm["mean"], 100 * arm["sd"], arm["n"]]
        assert [cell.value for cell in row[2:5]] == pytest.approx(wanted)
        assert (row[11].text, row[12].text) == ("4.2\u00a0s", "512\u00a0MiB")
    assert [cell.text for cell in first[6:11]] == ["–"] * 5
    wanted = [100 * gap["mean"], gap["ci95"][0], gap["p_value"]]
    wanted += [100 * entry["smallest_detectable"], gap["effect_size"]]
    assert [cell.value for cell in second[6:11]] == pytest.approx(wanted)
    chosen = [row for row in tables.tuning(found).rows if row[7].text == "chosen"]
    assert len(chosen) == 2


def test_runs_at_another_setting_are_no_part_of_an_arms_scores(study):

    document = study(gap=0.02)
    before = tables.scores(Study(document)).rows
    run = next(run for run in document["runs"] if run["stage"] == "report")
    other = run | {"setting": {**run["setting"], "lr": 9.0}, "seed": 1}
    other["scores"] = run["scores"] | {"test": {"loss": 9.0, "accuracy": 0.0}}
    document["runs"].append(other)
    assert tables.scores(Study(document)).rows == before


def test_the_time_is_weighed_where_sage_is_slower(study, show):
    def slower(run):
        run["seconds"] = 8.4 if run["arm"] == "sage-adamw" else 4.2

    def faster(run):
        run["seconds"] = 4.2 if run["arm"] == "sage-adamw" else 8.4

    assert "Weigh the gain against the time" in show(study(gap=0.02, spoil=slower)).text
    assert "Weigh the gain against the time" not in show(study(gap=0.02, spoil=faster)).text


def test_seeds_that_would_be_too_many_are_not_advised(study, show):
    document = study(gap=0.008, spread=0.02)
    document["comparisons"][0]["seeds_needed"] = 400
    text = show(document).text
    assert "--seeds 400" not in text
    assert "That is more than is likely to be worth it." in text


def test_the_code_says_the_scope_that_was_trained(study, show):
    document = study(gap=0.02)
    document["recipe"]["arms"]["sage-adamw"]["scope"] = "all"
    assert "sage='all'" in code_of(show(document).html)


def test_settings_chosen_by_a_score_are_close_by_that_score(study, show):
    """Where greater is better, a setting that did worse on a seed is none that did better."""
    document = study()
    document["recipe"]["study"]["select_by"] = "accuracy"
    said = "a setting that was not chosen did better"
    assert said not in show(document).text
    [run] = [
        run
        for run in document["runs"]
        if (run["stage"], run["arm"], run["seed"]) == ("tune", "adamw", 1)
        and run["setting"] == {"lr": 0.004}
    ]
    run["scores"]["validation"]["accuracy"] = 1.0
    assert f"{said}, for AdamW (lr 0.004)." in show(document).text


def test_the_figure_of_a_difference_has_its_sign(study, show):
    document = study(gap=0.02)
    [entry] = document["comparisons"]
    base, sage = (entry["arms"][name]["values"] for name in ("adamw", "sage-adamw"))
    figure = show(document).figures["difference-1"]
    (seeds,) = (trace for trace in figure["data"] if trace["name"] == "one seed")
    wanted = [100 * (s - b) for s, b in zip(sage, base, strict=True)]
    assert seeds["x"] == pytest.approx(wanted, rel=1e-3)
    (bar,) = (t for t in figure["data"] if t["name"] == "mean and 95% interval")
    high = 100 * entry["difference"]["ci95"][1]
    [middle] = bar["x"]
    assert bar["error_x"]["array"] == [pytest.approx(high - middle)]
    corners = [note["text"] for note in figure["layout"]["annotations"]]
    assert corners == ["← SageAdamW worse", "SageAdamW better →"]
    document["recipe"]["metric"]["greater_is_better"] = False
    figure = show(document).figures["difference-1"]
    corners = [note["text"] for note in figure["layout"]["annotations"]]
    assert corners == ["← SageAdamW better", "SageAdamW worse →"]


def test_what_sage_did_is_a_mean_over_the_seeds(study):

    def other(run):
        if run["sage"]:
            share = (run["seed"] - 1000) / 10  # 0 to 0.9: 0.45 on average
            for layer in run["sage"]["layers"]:
                layer["multiplier"] = share
            for look in run["sage"]["history"]:
                look["multiplier"] = dict.fromkeys(look["multiplier"], share)
            for place, row in enumerate(run["sage"]["by_sensitivity"]):
                row["multiplier"] = place / 20

    [found] = drawn.traced(Study(study(spoil=other)))
    assert [row["multiplier"] for row in drawn.layer_rows(found)] == pytest.approx([0.45] * 3)
    names = [layer["name"] for layer in found.traces[0]["layers"]]
    cells = drawn._cells(found, names, "multiplier")
    assert [each for row in cells for each in row] == pytest.approx([0.45] * 9)
    how = drawn._by_sensitivity([found]).how.replace("\u00a0", " ")
    assert "Least sensitive fifth 0.075, most sensitive fifth 0.88" in how


def test_while_tuning_curves_are_those_of_the_best_setting_so_far(study, show):
    document = study(status="tuning", tuned=12, looks=[])
    losses = {}
    for run in document["runs"]:
        if run["arm"] == "adamw":
            ends = losses.setdefault(run["setting"]["lr"], [])
            ends.append(run["curve"][-1]["validation_loss"])
    best = min(sum(ends) / len(ends) for ends in losses.values())
    lines = {trace.get("name"): trace for trace in show(document).figures["loss"]["data"]}
    assert len(losses) > 1
    assert lines["AdamW, validation"]["y"][-1] == pytest.approx(best, rel=1e-3)


def test_a_setting_that_lost_a_seed_has_no_mean_and_the_chosen_one_has_a_ring(study, show):
    def spoil(run):
        if run["stage"] == "tune" and run["setting"]["lr"] == 0.004 and run["seed"] == 1:
            run |= {"status": "diverged", "error": "training loss nan", "scores": FAILED}

    document = study(spoil=spoil)
    figure = show(document).figures["lr"]
    lines = {trace["name"]: trace for trace in figure["data"] if "lines" in trace["mode"]}
    line = lines["AdamW"]
    assert line["y"][line["x"].index(0.004)] is None
    rings = [trace["x"] for trace in figure["data"] if trace["name"] == "AdamW: chosen"]
    assert rings == [[document["tuning"]["adamw"]["chosen"]["lr"]]]


def test_an_arm_is_behind_by_the_score_that_settings_are_chosen_by(study, show):
    """Where greater is better, the smaller score is behind."""
    document = study()
    document["recipe"]["study"]["select_by"] = "accuracy"
    document["tuning"]["adamw"]["chosen"] = {"lr": 0.001}
    said = "SageAdamW was tried from lr 0.002 up alone, and the best of AdamW is 0.001."
    for shift, told in ((0.5, False), (-0.5, True)):
        other = json.loads(json.dumps(document))
        for run in other["runs"]:
            if (run["stage"], run["arm"]) == ("tune", "sage-adamw"):
                run["scores"]["validation"]["accuracy"] += shift
        assert (said in show(other).text) == told


def test_of_a_few_seeds_nothing_is_said_of_their_spread(study, show):
    def spoil(run):
        if run["stage"] == "report" and run["arm"] == "sage-adamw" and run["seed"] % 2:
            run["scores"]["test"] = {"loss": 1.0, "accuracy": 0.5}

    said = "At its setting SageAdamW trains well with some seeds and badly with others"
    assert said in show(study(spoil=spoil, seeds=6)).text
    assert said not in show(study(spoil=spoil, seeds=4)).text


def test_a_smoke_run_is_not_told_to_look_beyond_its_grid(study, show):
    document = study(quick=True)
    document["tuning"]["sage-adamw"]["on_edge"] = True
    assert "is still at the end of its grid" not in show(document).text


def test_crosses_of_lost_runs_stand_at_the_worse_edge(study, show):
    def spoil(run):
        if run["stage"] == "tune" and run["setting"]["lr"] == 0.004 and run["seed"] == 1:
            run |= {"status": "diverged", "error": "training loss nan", "scores": FAILED}

    figures = show(study(spoil=spoil)).figures
    for name, worst in (("lr", max), ("lr-metric", min)):
        data = figures[name]["data"]
        values = [y for trace in data if trace["marker"].get("size") == 4 for y in trace["y"]]
        crosses = [trace for trace in data if trace["marker"].get("symbol") == "x-thin"]
        assert crosses
        for cross in crosses:
            assert cross["y"] == pytest.approx([worst(values)] * len(cross["y"]), rel=1e-3)
