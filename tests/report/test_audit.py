"""What the page shows of an audit."""

import pytest
from scipy import stats

from sagelr.report import sections, sides
from sagelr.report.source import read
from sagelr.report.study import interval, student


def pages(*sources):
    return sections.page(read(sources))


def by_id(page):
    return {figure.id: figure for figure in page.figures()}


def test_an_audit_has_its_finding_first(audit):
    page = pages(audit)
    assert page.verdicts[0].headline == (
        "20% of the weights of AdamW and 20% of the weights of SageAdamW can go, and 99% of the "
        "accuracy stays."
    )
    assert [fact.value for fact in page.verdicts[0].facts] == ["20%", "20%", "12.0%", "12.0%"]


def test_an_audit_of_one_model_without_curves(audit):
    audit["models"] = audit["models"][:1]
    audit["models"][0]["pruning"] = audit["comparison"] = None
    page = pages(audit)
    assert page.verdicts[0].headline == (
        "Sensitivity is as concentrated as if 12.0% of the parameters of AdamW held all of it."
    )
    assert not page.redundancy[0].curves


def test_models_are_in_the_colours_of_their_arms(audit):
    audit["models"].reverse()
    page = pages(audit)
    colours = [fact.colour for fact in page.verdicts[0].facts[:2]]
    assert colours == ["--sage-1", "--base-1"]


def test_sensitivities_lie_over_each_other_layer_by_layer(audit):
    figures = by_id(pages(audit))
    for how in ("raw", "by-loss"):
        drawn = figures[f"audit-1-within-{how}"].data
        assert [trace["name"] for trace in drawn] == ["AdamW", "SageAdamW"]
        assert drawn[0]["x"].count(None) == 3  # one piece a layer
    raw, divided = (figures[f"audit-1-within-{how}"].data[0]["x"] for how in ("raw", "by-loss"))
    assert divided[0] / raw[0] == pytest.approx(
        1 / audit["models"][0]["sensitivity"]["loss"], rel=1e-3
    )


def test_a_loss_of_zero_divides_nothing(audit):
    for model in audit["models"]:
        model["sensitivity"]["loss"] = 0.0
    assert not [id for id in by_id(pages(audit)) if id.endswith("by-loss") and "matched" not in id]


def test_curves_of_two_points_are_in_the_table_alone(audit):
    page = pages(audit)
    table = next(table for table in page.redundancy[0].tables if table.id == "audit-1-pruning")
    told = [row[1].text for row in table.rows]
    assert told.count("two weights in every four") == 2
    assert not any("two weights" in figure.how.lower() for figure in page.redundancy[0].curves)


def test_matched_loss_has_its_figure_where_there_is_one(audit):
    assert "audit-1-matched-by-loss" in by_id(pages(audit))
    audit["comparison"]["matched"] = None
    assert "audit-1-matched-by-loss" not in by_id(pages(audit))


def test_curves_of_a_study_have_intervals_over_its_seeds(study, run_audit):
    def measure(run):
        if run["stage"] == "report":
            run["audit"] = run_audit(run["seed"])

    document = study(spoil=measure)
    figure = by_id(pages(document))["redundancy-1"]
    band, line = figure.data[:2]
    scores = [
        100 * run["audit"]["curves"][0]["points"][2]["scores"]["accuracy"]
        for run in document["runs"]
        if run["stage"] == "report" and run["arm"] == "adamw"
    ]
    mean, half = sum(scores) / len(scores), interval(scores)
    assert line["y"][2] == pytest.approx(mean, rel=1e-4)
    assert half is not None
    assert band["y"][2] == pytest.approx(mean - half, rel=1e-4)
    assert band["y"][-3] == pytest.approx(mean + half, rel=1e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 1000])
def test_students_t_needs_no_library(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_what_an_audit_saw_of_the_optimizer_is_shown(audit, tmp_path):
    row = {
        "step": 13, "layer": "a", "kind": "attention", "depth": 0, "parameters": 4, "sampled": 4,
        "sensitivity": 1e-5, "variation": 1e-6, "multiplier": 0.5,
        "quantiles": {"5": 0.1, "25": 0.2, "50": 0.5, "75": 0.7, "95": 1.0},
        "frozen": 0.0, "boosted": 0.0,
    }  # fmt: skip
    audit["models"][0] |= {"optimizer": [row], "live": [row]}
    page = pages(audit)
    tables = [table for each in page.redundancy for table in each.tables]
    assert "audit-1-optimizer" in [table.id for table in tables if table]
    assert "live-1-last" in by_id(page)


def test_a_score_that_is_no_number_is_left_out(audit):
    curve = audit["models"][0]["pruning"]["curves"][0]
    curve["points"][-1]["scores"]["accuracy"] = None
    drawn = pages(audit).redundancy[0].curves[0].data
    assert drawn[0]["y"][-1] is None
    assert drawn[0]["y"][0] is not None


def test_the_table_of_pruning_has_both_ends_and_means_over_the_seeds(study, run_audit):
    def measure(run):
        if run["stage"] == "report":
            run["audit"] = run_audit(run["seed"])
            for curve in run["audit"]["curves"]:
                curve["keeps99"]["accuracy"] = (run["seed"] - 1000) / 10  # 0 to 0.9

    document = study(spoil=measure)
    page = pages(document)
    [table] = [
        table
        for each in page.redundancy
        for table in each.tables
        if table and table.id.endswith("-pruning")
    ]
    curves = [
        run["audit"]["curves"][0]["points"]
        for run in document["runs"]
        if run["stage"] == "report" and run["arm"] == "adamw"
    ]
    ends = [
        sum(points[place]["scores"]["accuracy"] for points in curves) / len(curves)
        for place in (0, -1)
    ]
    assert [cell.value for cell in table.rows[0][5:8]] == pytest.approx([*ends, 0.45])


def test_models_at_matched_loss_have_the_loss_they_were_measured_at(audit):

    audit["comparison"]["matched"][0]["loss"] = 0.2
    found = sides.matched(audit, sides.of_audit(audit))
    assert [side.loss for side in found] == [0.2, 0.1]
