"""Several runs on one page: the comparison's own tables, fronts over each other, and one of the runs below."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.browser import opened, started
from support.made_runs import stored_page, write_made_run

from archsearch.cli import main
from archsearch.report import build_comparison
from archsearch.report.page.columns import unpacked
from archsearch.results import read_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("several")
    return [write_made_run(root, number, name=name, papers=6) for name, number in (("first", 26), ("second", 46))]


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


def test_the_page_has_the_comparison_and_every_run(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    printed = report(*folders, "--html", path)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.startswith(f"{path}: ")
    payload, document = stored_page(path), build_comparison(folders)
    assert [run["document"]["run"] for run in payload["runs"]] == ["first", "second"]
    compared = payload["comparison"]
    assert list(compared["axes"]) == [*document["objectives"], "macs"]
    shown = " ".join(report(*folders).stdout.split())  # the terminal folds, the page does not
    for part in compared["parts"]:
        assert all(" ".join(line.split()) in shown for line in part.get("lines", ()))
    tables = [part for part in compared["parts"] if "rows" in part]
    (runs,) = (part for part in tables if "hypervolume" in part["columns"] and "run" in part["columns"])
    assert [row[1] for row in runs["rows"]] == ["first", "second"]
    (joint,) = (part for part in tables if (part["title"] or "").startswith("Joint front"))
    assert len(joint["rows"]) == min(40, len(document["joint_front"]))
    for run, folder in zip(compared["runs"], folders, strict=True):
        complete = [row for row in read_rows(folder) if row["state"] == "complete"]
        assert unpacked(run["columns"]["trial"], run["rows"]) == [row["trial"] for row in complete]
        assert unpacked(run["columns"]["params"], run["rows"]) == [row["params"] for row in complete]


def test_without_a_file_it_is_written_into_the_present_folder(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(*folders, "--html").stdout.startswith("comparison.html: ")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"]


def test_what_is_for_one_run_is_refused_for_several_and_for_a_trial(folders: list[Path]) -> None:
    for words in ((*folders, "--csv"), (*folders, "--pick", "score>=best"), (f"{folders[0]}:1", "--html")):
        result = report(*words)
        assert result.exit_code == 2
        assert "is for one whole run; name one, or leave" in result.stderr
    assert not list(folders[0].glob("*.html"))


@pytest.mark.slow
def test_in_a_browser_the_fronts_are_drawn_and_another_run_can_be_shown(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    assert report(*folders, "--html", path).exit_code == 0
    with started() as browser, opened(browser, path, offline=True) as shown:
        page = shown.page
        assert page.text_content("h1") == "first, second"
        assert page.evaluate("scrollY") == 0
        traces = "document.querySelector('#compared .plot').data"
        assert page.evaluate(f"{traces}.filter(trace => trace.name).map(trace => trace.name)") == [
            "A first",
            "B second",
        ]
        # The lines join what no other trial of the run beats in both columns.
        for place, folder in enumerate(folders):
            rows = [row for row in read_rows(folder) if row["state"] == "complete"]
            points = [(row["throughput_img_s"], row["proxy_score"]) for row in rows]
            best = sorted(
                one
                for one in points
                if not any(
                    other != one and min(o - s for o, s in zip(other, one, strict=True)) >= 0 for other in points
                )
            )
            drawn = page.evaluate(
                f"(([xs, ys]) => xs.map((x, i) => [x, ys[i]]))([{traces}[{2 * place + 1}].x, {traces}[{2 * place + 1}].y])"
            )
            np.testing.assert_allclose(sorted(drawn), best, rtol=1e-12)
            assert drawn[0] == [pytest.approx(each) for each in best[-1]], "from the fastest"
            assert page.evaluate(f"{traces}[{2 * place + 1}].line.shape") == "hv", "so that no corner beats a trial"
        page.select_option("#compared-x", "params")
        assert page.evaluate(f"{traces}[1].x")[0] in [row["params"] for row in read_rows(folders[0])]
        assert "Run first" in page.text_content("#one")
        assert page.text_content("#table-count").endswith("of 26 trials")
        page.select_option("#run", "1")
        assert "Run second" in page.text_content("#one")
        assert page.text_content("#table-count").endswith("of 46 trials")
        assert page.input_value("#compared-x") == "params", "what was chosen stays"
        page.locator(".members button").nth(1).click()
        assert page.locator("#selected .export code").text_content().startswith(f"archsearch export {folders[1]}:")
        page.emulate_media(color_scheme="dark")
        assert len(page.pdf()) > 10_000
        assert shown.messages == []
        assert shown.leaks == []
