"""The page in a browser: it draws, asks nothing of the network, sorts, and changes its theme."""

import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagelr.report import write_report

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg'))"
LIMIT = 60_000  # milliseconds; a slow machine is not a failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Visit:
    """A page that is open, and all that went on."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(LIMIT)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function(DRAWN)

    def fetched(self) -> list[str]:
        """What was asked for besides the file itself."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]

    def colour(self) -> str:
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")

    def saved(self, button: str) -> tuple[str, bytes]:
        """What a button saves: name of the file and its content."""
        with self.page.expect_download() as waiting:
            self.page.locator(button).first.click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def go(*sources: Any, **context: Any) -> Visit:
        path = write_report(sources, tmp_path / "report.html")
        visits.append(Visit(browser, path, **context))
        return visits[-1]

    yield go
    for each in visits:
        each.context.close()
    for each in visits:
        assert each.said == []
        assert each.fetched() == []


@pytest.fixture(scope="module")
def plain(browser, study, tmp_path_factory) -> Iterator[Visit]:
    """A study that several tests look at."""
    path = write_report(study(gap=0.02), tmp_path_factory.mktemp("plain") / "report.html")
    visited = Visit(browser, path, color_scheme="dark")
    yield visited
    visited.context.close()
    assert visited.said == []
    assert visited.fetched() == []


@pytest.fixture
def measured(study, run_audit):
    """A study whose runs carry an audit."""

    def measure(run):
        if run["stage"] == "report":
            run["audit"] = run_audit(run["seed"])

    return study(gap=0.02, spoil=measure)


def test_every_figure_is_drawn(visit, measured, audit):
    page = visit(measured, audit).page
    plots = page.locator(".plot")
    assert plots.count() > 25
    lines = page.locator("#plot-metric .scatterlayer .trace")
    assert lines.count() == 4  # a line and a band for each arm
    assert page.locator("#plot-history-1 .heatmaplayer image").count() == 1
    for i in range(plots.count()):
        box = plots.nth(i).bounding_box()
        assert box is None or box["height"] > 100  # None where it is folded away


def test_folded_figures_fit_when_they_are_opened(visit, audit):
    page = visit(audit).page
    fold = page.locator("#audit-1 details:has(.plot)")
    fold.locator("summary").click()
    plot = fold.locator(".plot").first
    page.wait_for_function(
        "(plot) => Math.abs(plot.clientWidth - plot.querySelector('.main-svg').clientWidth) < 2",
        arg=plot.element_handle(),
    )


def test_hostile_names_do_nothing(visit, study, hostile):
    document = study(command=hostile)
    document["recipe"]["title"] = hostile
    for arm in document["arms"].values():
        arm["label"] = hostile
    page = visit(document).page
    assert page.locator("h1").inner_text().count("alert(1)") == 2
    assert "<b>" in page.locator("#plot-metric .legendtext").first.text_content()


@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_tables_sort(plain, by):
    page = plain.page
    page.evaluate("document.querySelector('details:has([data-table=runs])').open = true")
    heading = page.locator("[data-table=runs] th", has=page.get_by_text("seed", exact=True))
    button = heading.locator(".sort")

    def press() -> list[float]:
        if by == "click":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")
        cells = page.locator("[data-table=runs] tbody tr > :nth-child(4)").all_inner_texts()
        return [float(text) for text in cells]

    page.locator("[data-table=runs] .sort").first.click()
    assert heading.get_attribute("aria-sort") == "none"
    up = press()
    assert up == sorted(up)
    assert up[0] < up[-1]
    assert heading.get_attribute("aria-sort") == "ascending"
    assert press() == up[::-1]
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.locator("[data-table=runs] [aria-sort=descending]").count() == 1


def test_what_is_missing_sorts_last_either_way(plain):
    arms = plain.page.locator("[data-table=scores] tbody th")
    for _ in range(2):
        plain.page.locator("[data-table=scores] .sort", has_text="effect size").click()
        assert arms.all_inner_texts() == ["SageAdamW", "AdamW"]  # a base has no effect


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_is_the_systems_until_one_is_chosen_and_then_remembered(visit, study, system):
    visited = visit(study(), color_scheme=system)
    page = visited.page
    before, drawn = visited.colour(), page.locator("#plot-metric .xtick text").first
    ink = drawn.evaluate("(text) => getComputedStyle(text).fill")
    bright = sum(map(int, re.findall(r"\d+", before))) > 380
    assert bright == (system == "light")
    page.locator("#theme").click()
    assert visited.colour() != before
    assert drawn.evaluate("(text) => getComputedStyle(text).fill") != ink
    chosen = visited.colour()
    page.reload()
    page.wait_for_function(DRAWN)
    assert visited.colour() == chosen
    page.locator("#theme").click()
    assert visited.colour() == before


def test_definitions_are_one_click_away(plain):
    page = plain.page
    definition = page.locator("#word-interval")
    assert not definition.is_visible()
    page.locator("[data-table=scores] [popovertarget=word-interval]").focus()
    page.keyboard.press("Enter")
    assert definition.is_visible()
    assert "Student's interval" in definition.inner_text()
    page.keyboard.press("Escape")
    assert not definition.is_visible()


def test_figures_are_saved_as_svg_and_png(plain):
    name, svg = plain.saved("[data-of=metric][data-export=svg]")
    assert name == "metric.svg"
    assert svg.startswith(b"<svg")
    assert b"Validation accuracy after the last epoch" in svg
    assert b"SageAdamW" in svg
    name, png = plain.saved("[data-of=metric][data-export=png]")
    assert name == "metric.png"
    assert png.startswith(b"\x89PNG")


def test_tables_are_saved_as_csv_in_the_units_shown(visit, study):
    document = study(gap=0.02)
    document["arms"]["adamw"]["label"] = '=HYPERLINK("x"), a'
    name, content = visit(document).saved("[data-csv=scores]")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    found = document["comparisons"][0]
    assert name == "scores.csv"
    assert rows[0]["arm"] == '\'=HYPERLINK("x"), a'
    mean = found["arms"]["sage-adamw"]["mean"]
    assert float(rows[1]["mean accuracy (%)"]) == pytest.approx(100 * mean)
    gap = found["difference"]["mean"]
    assert float(rows[1]["difference (points)"]) == pytest.approx(100 * gap)
    assert rows[0]["difference (points)"] == ""


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_hangs_over_the_side(visit, measured, audit, width):
    page = visit(measured, audit, viewport={"width": width, "height": 800}).page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """(width) => [...document.querySelectorAll('main *')]
        .filter((each) => !each.closest('.scroll, pre, .plot'))
        .filter((each) => each.getBoundingClientRect().right > width + 1)
        .map((each) => each.outerHTML.slice(0, 80))""",
        width,
    )
    assert wide == []


def test_on_paper_figures_are_light_and_everything_is_open(plain):
    page = plain.page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = false")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("#theme").is_hidden()
    tick = page.locator("#plot-metric .xtick text").first
    ink = tick.evaluate("(text) => getComputedStyle(text).fill")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < 128
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="screen")
