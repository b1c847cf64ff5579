"""The page in a real browser: drawn without an error and without a network, by mouse, by keyboard, on paper."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.browser import Opened, opened, started
from support.made_runs import write_made_run
from support.report_runs import SIX, fixed, trial, write_run
from support.runs import InProcessWorker, fixed_archs, make_rung_config, run
from support.stub_evaluators import evaluate

from archsearch.cli import main
from archsearch.identity import with_throughput_ids
from archsearch.report import build_report, write_page
from archsearch.results import read_rows
from archsearch.results.schema import LATER_COLUMNS

pytestmark = pytest.mark.slow
NASTY = "</script><img src=x onerror=window.hit=1><b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as browser:
        yield browser


def write(folder: Path) -> Path:
    result = CliRunner().invoke(main, ["report", str(folder), "--html"])
    assert result.exit_code == 0, result.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the engine has finished: two papers' models and 20 trials in rungs."""
    root = tmp_path_factory.mktemp("searched")
    folder = root / "results" / "searched"
    phases = ("count", "throughput", "proxy@25", "proxy@100", "proxy")
    config = make_rung_config(root / "log", name="searched", settings={"phases": phases})
    run(folder, config, 20, fixed=fixed_archs(), worker=InProcessWorker(evaluate))
    write(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 10,000 trials."""
    folder = write_made_run(tmp_path_factory.mktemp("large"), 10_000, papers=6)
    write(folder)
    return folder


def assert_clean(shown: Opened) -> None:
    assert shown.messages == []
    assert shown.leaks == []


def test_a_searched_run_is_drawn_without_an_error_and_without_a_network(browser: Any, searched: Path) -> None:
    document = build_report(searched)
    with opened(browser, searched / "report.html", offline=True) as shown:
        page = shown.page
        assert page.title() == "searched - archsearch"
        assert page.text_content("h1") == "searched"
        assert document["run"] in page.text_content("header .lead")
        assert page.text_content("#front h2") == f"Front of {len(document['front'])}"
        assert page.locator(".members button").count() == len(document["front"])
        assert page.locator(".main-svg").count() > 0
        assert page.text_content("#table-count") == "22 of 22 trials"
        assert f"{document['hypervolume']['value']:.4f}"[:6] in json.dumps(
            page.evaluate("document.querySelector('#progress .plot').data[0].y")
        )
        assert_clean(shown)


def test_hovering_shows_the_drawing_and_a_click_selects_it(browser: Any, searched: Path) -> None:
    rows = {row["trial"]: row for row in read_rows(searched)}
    with opened(browser, searched / "report.html") as shown:
        page = shown.page
        page.locator("#front .plot").scroll_into_view_if_needed()
        x, y, trial_number = page.evaluate(POINT)
        page.mouse.move(x, y, steps=4)
        page.wait_for_selector("#tip:visible")
        assert page.locator("#tip svg.drawing rect").count() > 4
        assert rows[trial_number]["architecture"] in page.text_content("#tip")
        page.mouse.click(x, y)
        shown.until(
            "number => document.querySelector('#selected h3').textContent.includes(number)", argument=str(trial_number)
        )
        command = page.text_content("#selected .export code")
        assert command == f"archsearch export {searched}:{trial_number} searched-{trial_number}"
        assert_clean(shown)


# The middle of a front's point that no other covers, in the window's pixels, and its trial.
POINT = """() => {
  const node = document.querySelector('#front .plot'), box = node.getBoundingClientRect(), {xaxis, yaxis} = node._fullLayout;
  const points = node.data.filter(trace => trace.customdata && trace.mode === 'markers').flatMap(
    trace => trace.customdata.map((place, index) => ({place, front: trace === node.data[3],
      x: box.left + xaxis._offset + xaxis.d2p(trace.x[index]), y: box.top + yaxis._offset + yaxis.d2p(trace.y[index])})));
  const alone = point => points.every(other => other === point || Math.hypot(other.x - point.x, other.y - point.y) > 25);
  const found = points.find(point => point.front && alone(point));
  const names = [...document.querySelectorAll('.members button')].map(button => [Number(button.dataset.place), button.querySelector('b').textContent]);
  return [found.x, found.y, Number(Object.fromEntries(names)[found.place].replace('trial ', ''))];
}"""


def test_the_drawing_has_the_blocks_the_maps_and_the_costs_of_the_architecture(browser: Any, searched: Path) -> None:
    with opened(browser, searched / "report.html") as shown:
        page = shown.page
        page.select_option("#state", "fixed")
        page.locator(".trials tbody tr[data-index]", has_text="davit_tiny").click()
        drawing = page.locator("#selected svg.drawing")
        # DaViT-Tiny's window and channel blocks, and the head.
        assert drawing.locator("rect").count() == 2 * (1 + 1 + 3 + 1) + 1
        words = page.text_content("#selected svg.drawing")
        assert all(f"{side} × {side} px" in words for side in (56, 28, 14, 7))
        assert "96 wide" in words
        total = page.text_content("#selected .costs tfoot")
        assert "4.54G" in total
        assert "28.36M" in total
        assert_clean(shown)


def test_the_columns_of_the_chart_change_and_its_line_is_the_front_of_the_two(browser: Any, searched: Path) -> None:
    pairs = build_report(searched)["pair_fronts"]
    rows = {row["trial"]: row for row in read_rows(searched)}
    with opened(browser, searched / "report.html") as shown:
        page = shown.page
        titles = {"params": "parameters", "macs": "MACs", "throughput_img_s": "images per second"}
        for column, title in titles.items():
            page.select_option("#x-column", column)
            shown.until(
                "name => document.querySelector('#front .plot').layout.xaxis.title.text.includes(name)",
                argument=title,
            )
            line = page.evaluate(
                "(() => { const line = document.querySelector('#front .plot').data[1]; return line.x.map((x, index) => [x, line.y[index]]); })()"
            )
            expected = [
                [rows[number][column], rows[number]["proxy_score"]] for number in pairs[f"proxy_score/{column}"]
            ]
            assert sorted(line) == sorted(expected)
            assert (page.evaluate("document.querySelector('#front .plot').layout.shapes.length") == 1) == (
                column == "macs"
            )
        page.select_option("#y-column", "trial")
        assert_clean(shown)


# Points of the drawn line, in the chart's own columns.
LINE = """selector => {
  const node = document.querySelector(selector), {xaxis, yaxis} = node._fullLayout, path = node.querySelector('path.js-line');
  const steps = 400, long = path.getTotalLength();
  return [...Array(steps + 1).keys()].map(step => path.getPointAtLength(step * long / steps)).map(({x, y}) => [xaxis.p2d(x), yaxis.p2d(y)]);
}"""


@pytest.mark.parametrize(("column", "sign"), [("throughput_img_s", 1), ("params", -1)])
def test_the_line_passes_through_nothing_that_no_trial_has_reached(
    browser: Any, tmp_path: Path, column: str, sign: int
) -> None:
    """At every place of the staircase some trial is as good in both columns: at 40 img/s none has .79."""
    folder = write_run(tmp_path, SIX)
    reached = [(sign * row[column], row["proxy_score"]) for row in SIX if row["state"] == "complete"]
    with opened(browser, write(folder)) as shown:
        shown.page.select_option("#x-column", column)
        shown.until(
            "name => document.querySelector('#front .plot').data[1].x.length === 3 && document.querySelector('#x-column').value === name",
            argument=column,
        )
        line = [(sign * x, y) for x, y in shown.page.evaluate(LINE, "#front .plot")]
        assert max(y for _, y in line) == pytest.approx(0.80, abs=1e-3)
        assert min(y for _, y in line) == pytest.approx(0.60, abs=1e-3)
        for x, y in line:
            assert any(best >= x - abs(x) * 1e-3 and score >= y - 1e-3 for best, score in reached), (x, y)
        assert_clean(shown)


def test_a_zoom_stays_where_a_trial_is_selected_and_goes_with_the_columns(browser: Any, searched: Path) -> None:
    with opened(browser, searched / "report.html") as shown:
        page = shown.page
        page.locator("#front .plot").scroll_into_view_if_needed()
        box = page.locator("#front .plot .nsewdrag").first.bounding_box()
        left, top = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"]
        span = "JSON.stringify(document.querySelector('#front .plot')._fullLayout.xaxis.range)"
        whole = page.evaluate(span)
        page.mouse.move(left, top)
        page.mouse.down()
        page.mouse.move(left + 150, top + 120, steps=5)
        page.mouse.up()
        shown.until(f"before => {span} !== before", argument=whole)
        near = page.evaluate(span)
        page.locator(".members button").nth(1).click()
        page.wait_for_timeout(200)
        assert page.evaluate(span) == near
        page.select_option("#x-column", "params")
        page.wait_for_timeout(200)
        assert page.evaluate("document.querySelector('#front .plot')._fullLayout.xaxis.autorange") is True
        assert_clean(shown)


def test_trials_that_were_timed_otherwise_are_on_no_axis_of_the_device(browser: Any, tmp_path: Path) -> None:
    def on(device: str) -> dict[str, Any]:
        return {"device_name": device, "conditions": json.dumps({"device_name": device, "threads": 2})}

    rows = [trial(number, 0.5 + 0.1 * number, 9000.0, 10 + number, **on("A100")) for number in range(3)]
    rows += [trial(number, 0.5, 20.0 + number, 10, **on("H100")) for number in range(3, 5)]
    folder = write_run(tmp_path, with_throughput_ids(rows))
    assert [row["trial"] for row in build_report(folder)["front"]] == [4]
    drawn = "document.querySelector('#front .plot').data.flatMap(trace => trace.customdata || []).toSorted()"
    with opened(browser, write(folder)) as shown:
        page = shown.page
        page.select_option("#x-column", "throughput_img_s")
        shown.until(
            "() => document.querySelector('#front .plot').layout.xaxis.title.text.includes('images per second')"
        )
        assert page.evaluate(drawn) == [3, 4]
        assert "Not shown: 3 trials that were timed otherwise than the ranked ones." in page.text_content("#front-note")
        page.select_option("#x-column", "params")
        shown.until("() => document.querySelector('#front .plot').layout.xaxis.title.text.includes('parameters')")
        assert set(page.evaluate(drawn)) == {0, 1, 2, 3, 4}
        assert_clean(shown)


def test_the_keyboard_alone_goes_along_the_front_selects_and_closes(browser: Any, searched: Path) -> None:
    with opened(browser, searched / "report.html") as shown:
        page = shown.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.focus("#front .plot")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#tip:visible")
        name = page.text_content("#tip strong")
        page.keyboard.press("Enter")
        assert name in page.text_content("#selected h3")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#tip strong") != name  # it goes on from there
        page.focus(".trials tbody tr[tabindex='0']")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        number = page.evaluate("document.activeElement.cells[0].lastChild.data")
        page.keyboard.press("Enter")
        assert page.locator("tr[aria-selected='true'] td").first.text_content().endswith(number)
        page.keyboard.press("Escape")
        assert "Nothing is selected" in page.text_content("#selected")
        page.focus("#choices .value >> nth=0")
        page.keyboard.press("Enter")
        assert page.locator("#choices .value[aria-pressed='true']").count() == 1
        assert_clean(shown)


def test_ten_thousand_trials_are_thinned_filtered_sorted_and_saved(browser: Any, large: Path, tmp_path: Path) -> None:
    rows = read_rows(large)
    with opened(browser, large / "report.html", offline=True) as shown:
        page = shown.page
        assert (large / "report.html").stat().st_size < 5_000_000
        assert "Shown: 1,500 of" in page.text_content("#front-note")
        assert page.locator(".trials tbody tr").count() < 60
        scores = sorted((row["proxy_score"] for row in rows if row["proxy_score"] is not None), reverse=True)
        assert [cells[1].split()[0] for cells in shown.row_texts()[:5]] == [f"{score:.3f}" for score in scores[:5]]
        page.click(".trials th button:has-text('params')")
        assert page.get_attribute(".trials th[aria-sort='ascending']", "class") == ""
        page.fill("#filter", "hilo params<20M score>0.6")
        kept = [
            row
            for row in rows
            if "hilo" in row["architecture"] and row["params"] < 20e6 and (row["proxy_score"] or 0) > 0.6
        ]
        assert 0 < len(kept) < len(rows)
        assert page.text_content("#table-count") == f"{len(kept):,} of 10,000 trials"
        with page.expect_download() as download:
            page.click("#csv")
        download.value.save_as(tmp_path / "kept.csv")
        saved = list(csv.DictReader(io.StringIO((tmp_path / "kept.csv").read_text())))
        by_trial = {row["trial"]: row for row in kept}
        assert {int(row["trial"]) for row in saved} == set(by_trial)
        assert [float(row["params"]) for row in saved] == sorted(row["params"] for row in kept)
        for row in saved[:50]:
            own = by_trial[int(row["trial"])]
            assert float(row["proxy_score"]) == own["proxy_score"]
            assert float(row["throughput_img_s"]) == own["throughput_img_s"]
        page.evaluate("document.querySelector('.rows').scrollTop = 1e6")
        shown.until("() => document.querySelector('.trials tbody tr[data-index]').dataset.index !== '0'")
        assert_clean(shown)


def test_the_filter_takes_comparisons_as_people_write_them_and_names_those_that_it_cannot_read(
    browser: Any, tmp_path: Path
) -> None:
    rows = [{**row, "latency_ms": 5.0 + number, "peak_memory_bytes": number * 2**30} for number, row in enumerate(SIX)]
    read = {
        "score > 0.7": lambda row: (row["proxy_score"] or 0) > 0.7,
        "score>=.75 params < 26 M": lambda row: (row["proxy_score"] or 0) >= 0.75 and row["params"] < 26e6,
        "macs<=4.500000002GFLOPs": lambda row: row["macs"] <= 4_500_000_002,
        "macs < 4500.000002 MMACs": lambda row: row["macs"] < 4_500_000_002,
        "memory<=2GiB": lambda row: row["peak_memory_bytes"] <= 2**31,
        "memory <= 2 GB": lambda row: row["peak_memory_bytes"] <= 2e9,
        "ms/batch<7ms": lambda row: row["latency_ms"] < 7,
        "latency < 7000 us": lambda row: row["latency_ms"] < 7,
        "img/s >= 20 img/s": lambda row: (row["throughput_img_s"] or 0) >= 20,
    }
    with opened(browser, write(write_run(tmp_path, rows))) as shown:
        for text, keeps in read.items():
            shown.page.fill("#filter", text)
            number = sum(map(keeps, rows))
            assert 0 < number < len(rows), text
            assert shown.page.text_content("#table-count") == f"{number} of 7 trials", text
        for text in ("scroe>0.7", "score>high", "state=failed", "params<25MX"):
            shown.page.fill("#filter", f"{text} params<26M")
            number = sum(row["params"] < 26e6 for row in rows)
            assert shown.page.text_content("#table-count").startswith(
                f"{number} of 7 trials; not read: {text.lower()} "
            )
        assert_clean(shown)


def test_words_of_the_page_are_those_of_the_report(browser: Any, tmp_path: Path) -> None:
    rows = [{**row, "latency_ms": 5.26, "peak_memory_bytes": 1000, "throughput_noisy": True} for row in SIX]
    folder = write_run(tmp_path, rows, name="my run")
    with opened(browser, write(folder)) as shown:
        page = shown.page
        alert = page.locator("header .alert")
        assert "The order by speed is not to be used" in alert.text_content()
        assert "`" not in alert.text_content()
        assert alert.locator("code").text_content() == "archsearch run --remeasure"
        assert page.text_content("footer code") == f"archsearch report '{folder}' --json"
        has_mark = any(text.endswith("?") for text in page.locator(".members button").all_text_contents())
        assert has_mark
        assert "? behind a score: another trial may dominate it within noise" in page.text_content("#front-note")
        page.locator(".trials tbody tr[data-index]").first.click()
        figures = page.text_content("#selected dl")
        assert "5.3batch 4" in figures
        assert "1000 B" in figures
        page.select_option("#state", "failed")
        page.locator(".trials tbody tr[data-index]").first.click()
        assert page.text_content("#selected .note code") == f"archsearch cost '{folder}:5'"
        assert_clean(shown)


def test_a_trial_that_several_rules_pick_has_one_card(browser: Any, searched: Path, tmp_path: Path) -> None:
    document = build_report(searched)
    best = document["front"][0]["trial"]
    beats = {
        "paper": "van_b2",
        "trial": 0,
        "score_difference": 0.1,
        "throughput_ratio": None,
        "params_ratio": 0.5,
        "macs_ratio": 0.9,
        "is_score_tie": True,
    }
    pick = {
        "rule": "The best.",
        "trial": best,
        "reason": None,
        "sentence": "Best score: trial 5. Not resolved: much.",
        "beats": [beats, {**beats, "paper": "van_b1", "score_difference": None, "is_score_tie": False}],
        "unresolved": ["much"],
    }
    none: dict[str, Any] = {
        "rule": "The middle.",
        "trial": None,
        "reason": "none",
        "sentence": "Knee: none, since <b>.",
        "beats": [],
        "unresolved": [],
    }
    picks = [
        {**pick, "name": "best score"},
        {**pick, "name": "fastest within one standard error"},
        {**none, "name": "knee"},
    ]
    write_page([(searched, {**document, "picks": picks})], tmp_path / "picks.html")
    with opened(browser, tmp_path / "picks.html") as shown:
        cards = shown.page.locator("#picks article")
        assert cards.count() == 2
        assert cards.nth(0).locator("h3 span").all_text_contents() == [
            "best score",
            "fastest within one standard error",
        ]
        assert "Trial 5." in cards.nth(0).text_content()
        assert "van_b2: score +0.100 (a tie), 0.50× the parameters, 0.90× the MACs" in cards.nth(0).text_content()
        assert "van_b1: 0.50× the parameters, 0.90× the MACs" in cards.nth(0).text_content()
        assert "None, since <b>." in cards.nth(1).text_content()
        assert shown.page.locator(".members button[aria-pressed='true']").count() == 1
        assert_clean(shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_printed_light(browser: Any, searched: Path, scheme: str) -> None:
    with opened(browser, searched / "report.html", color_scheme=scheme) as shown:
        dark = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(18, 20, 26)") == (scheme == "dark")
        assert shown.page.pdf(format="A4").startswith(b"%PDF")
        shown.page.emulate_media(media="print")
        assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert_clean(shown)


def test_the_theme_is_turned_and_a_phone_scrolls_in_one_direction(browser: Any, searched: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with opened(browser, searched / "report.html", **phone) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 390
        shown.page.click("button:has-text('Dark')")
        assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 26)"
        assert_clean(shown)


def test_texts_of_a_run_are_never_html(browser: Any, tmp_path: Path) -> None:
    """Names, reasons and architectures that would start a script are shown as they are."""
    rows = [
        fixed(0, NASTY, 0.7, 20.0, 28_360_168),
        trial(1, 0.8, 30.0, 20_000_000, architecture=NASTY),
        trial(2, None, None, 22_000_000, reason=NASTY),
    ]
    folder = write_run(
        tmp_path,
        rows,
        extra={"name": NASTY, "space": {"name": NASTY, "sha256": "0"}, "conditions": {"device_name": NASTY}},
    )
    path = write(folder)
    assert NASTY not in path.read_text()
    with opened(browser, path) as shown:
        page = shown.page
        assert page.text_content("h1") == NASTY
        for place in range(3):
            page.locator(".trials tbody tr[data-index]").nth(place).click()
            page.wait_for_timeout(50)
        assert NASTY in page.text_content(".trials")
        assert page.evaluate("[window.hit === undefined, document.querySelectorAll('img').length]") == [True, 0]
        assert_clean(shown)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {"state": "complete"}, "No trial is complete yet"),
        ([trial(0, None, None, 22_000_000)], {}, "1 trial failed"),
        (
            [trial(0, None, None, 22_000_000, state="running", reason=None)],
            {"state": "complete"},
            "No trial is complete yet",
        ),
        ([trial(0, 0.5, 2.0, 22_000_000)], {}, "Front of 1"),
        (
            [
                {
                    **trial(number, 0.5, 1.0, 10 + number),
                    **dict.fromkeys(("proxy_score", "proxy_score_se", "throughput_img_s", "proxy_id")),
                }
                for number in range(3)
            ],
            {"objectives": ("macs", "params")},
            "Front of 1",
        ),
        (
            [
                *SIX,
                trial(
                    7,
                    0.9,
                    3.0,
                    9,
                    arch=json.dumps({"given": "timm:resnet18", "kind": "ResNet"}),
                    architecture="timm:resnet18",
                    is_fixed=True,
                    paper="timm:resnet18",
                ),
            ],
            {},
            "Front of 4",
        ),
        (
            [
                trial(
                    0,
                    0.5,
                    2.0,
                    22_000_000,
                    arch=json.dumps(
                        {
                            **json.loads(SIX[0]["arch"]),
                            "stages": [{"width": 8, "depth": 2, "block": "mine", "mine": {"size": 3}}],
                        }
                    ),
                )
            ],
            {},
            "Front of 1",
        ),
    ],
    ids=["empty", "failed", "running", "one", "no score", "given", "unknown block"],
)
def test_runs_that_lack_something_are_shown(
    browser: Any, tmp_path: Path, rows: list[Any], options: dict[str, Any], words: str
) -> None:
    folder = write_run(tmp_path, rows, **options)
    with opened(browser, write(folder)) as shown:
        assert words in shown.page.text_content("main")
        for place in range(len(rows)):
            shown.page.locator(".trials tbody tr[data-index]").nth(place).click()
            assert shown.page.text_content("#selected h3")
        assert_clean(shown)


def test_a_run_of_an_earlier_version_is_shown(browser: Any, tmp_path: Path) -> None:
    """One that lacks every column that came later, as its files had none."""
    folder = write_run(tmp_path, SIX)
    table = pq.read_table(folder / "trials.parquet")
    pq.write_table(
        table.select([name for name in table.column_names if name not in LATER_COLUMNS]), folder / "trials.parquet"
    )
    with opened(browser, write(folder)) as shown:
        assert shown.page.text_content("#front h2") == "Front of 3"
        assert shown.page.locator("#over option").count() == 1  # no images are known of
        assert_clean(shown)
