"""What the page is made from: the report's own document and rows, drawings and costs of the architectures, and the growth of the front."""

import html.parser
import json
import shlex
import subprocess
import sys
from pathlib import Path

import moocore
import numpy as np
import pytest
from click.testing import CliRunner
from support.made_runs import made_rows, stored_page, write_made_run
from support.report_runs import SIX, trial, write_run

from archsearch.cli import main
from archsearch.report import build_report
from archsearch.report.page.columns import LEFT_OUT, unpacked
from archsearch.report.page.networks import costs_by_stage
from archsearch.report.page.payload import page_payload
from archsearch.results import SCHEMA, read_rows
from archsearch.space import Arch, paper


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 60 trials beside the papers' models."""
    return write_made_run(tmp_path_factory.mktemp("made"), 66, papers=6)


def report(*words: object) -> str:
    result = CliRunner().invoke(main, ["report", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_holds_the_report_and_every_value_of_the_rows(made: Path) -> None:
    printed = report(made, "--html")
    assert printed == f"{made / 'report.html'}: {printed.partition(': ')[2]}"
    assert "one file that needs no network" in printed
    (run,) = stored_page(made / "report.html")["runs"]
    document = json.loads(report(made, "--json"))
    assert [row["trial"] for row in run["document"]["front"]] == [row["trial"] for row in document["front"]]
    same = {key: value for key, value in document.items() if not (isinstance(value, list) and value)}
    assert {key: run["document"][key] for key in same} == same
    everyone = read_rows(made)
    for name in SCHEMA.names:
        if name not in LEFT_OUT:
            own = [
                value.isoformat() if hasattr(value, "isoformat") else value for value in (row[name] for row in everyone)
            ]
            assert unpacked(run["columns"][name], len(everyone)) == own, name


def test_drawings_are_the_architectures_and_their_costs_add_up(made: Path) -> None:
    (run,) = page_payload([(made, build_report(made))])["runs"]
    networks, document = run["networks"], run["document"]
    for place, row in enumerate(read_rows(made)):
        arch = Arch.from_dict(json.loads(row["arch"]))
        numbers, sides, _ = networks["archs"][place]
        stages = [networks["stages"][number] for number in numbers]
        assert [(stage["block"], stage["width"], stage["depth"]) for stage in stages] == [
            (stage.block, stage.width, stage.depth) for stage in arch.stages
        ]
        maps = {
            placed.path.split(".")[1]: (placed.out.height, placed.out.width)
            for placed in arch.layers()
            if placed.path.startswith("stages")
        }
        assert [tuple(side) for side in networks["sides"][sides]] == list(maps.values())
    priced = {row["trial"] for name in ("front", "fixed", "near_front") for row in document[name]}
    assert priced <= set(networks["costs"])


def test_picks_have_costs_by_stage_however_many_trials_are_on_the_front(tmp_path: Path) -> None:
    """The best score is the last of more trials than are priced."""
    objectives = ("proxy_score", "params")
    folder = write_run(tmp_path, [trial(n, 0.1 + n / 1000, 20.0, 10**6 + n) for n in range(620)], objectives=objectives)
    (run,) = page_payload([(folder, build_report(folder))])["runs"]
    picked = {pick["trial"] for pick in run["document"]["picks"]} - {None}
    assert 619 in picked
    assert len(run["networks"]["costs"]) < len(run["document"]["front"])
    assert picked <= set(run["networks"]["costs"])


@pytest.mark.parametrize(
    "name",
    [
        "van_b2",
        "davit_tiny",
        "litv2_s",
        "crossformer_small",
        "swin_tiny",
        "twins_svt_small",
        "msg_transformer_tiny",
        "pvt_small",
    ],
)
def test_costs_by_stage_add_up_to_the_whole(name: str) -> None:
    arch = paper(name)
    found = costs_by_stage(arch)
    parts = [*found["stages"], found["head"]]
    assert sum(part["macs"] for part in parts) == arch.cost().macs
    assert sum(part["params"] for part in parts) == arch.cost().params


def test_progress_is_moocores_hypervolume_of_the_trials_so_far(made: Path) -> None:
    (run,) = page_payload([(made, build_report(made))])["runs"]
    progress, volume = run["progress"], build_report(made)["hypervolume"]
    assert progress["points"][-1]["hypervolume"] == pytest.approx(volume["value"], rel=1e-12)
    ended = read_rows(made)
    signs = {"proxy_score": -1, "throughput_img_s": -1, "params": 1}
    bounds = [sorted(signs[name] * end for end in each.values()) for name, each in volume["bounds"].items()]
    for point in progress["points"]:
        so_far = [row for row in ended[: point["trials"]] if row["state"] == "complete"]
        values = np.array([[signs[name] * row[name] for name in volume["bounds"]] for row in so_far])
        scaled = (values - [low for low, _ in bounds]) / [high - low for low, high in bounds]
        assert point["hypervolume"] == pytest.approx(moocore.hypervolume(scaled, ref=[1.1] * 3))
        assert point["images"] == sum(row["train_images"] for row in ended[: point["trials"]])
    assert progress["images"] == sum(row["train_images"] for row in ended)


def test_stopped_and_failed_trials_are_among_the_made_rows() -> None:
    """The other tests here mean something only if they are."""
    states = {row["state"] for row in made_rows(400, stopped=0.6, papers=6)}
    assert states == {"complete", "stopped", "failed"}


class Tags(html.parser.HTMLParser):
    """The tags of a page, and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith(("#", "data:"))
        ]


def test_the_file_names_nothing_outside_and_no_text_of_a_run_is_html(tmp_path: Path) -> None:
    nasty = "</script><img src=https://example.com/x onerror=alert(1)>"
    folder = write_run(
        tmp_path, [*SIX[:3], trial(3, None, None, 9, reason=nasty, architecture=nasty)], extra={"name": nasty}
    )
    report(folder, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.fetched == []
    assert "img" not in tags.tags
    assert tags.tags.count("script") == 3
    assert "default-src 'none'" in text
    assert stored_page(tmp_path / "page.html")["runs"][0]["document"]["run"] == nasty


def test_the_page_is_one_of_three_forms_and_its_file_ends_in_html(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, SIX)
    monkeypatch.chdir(tmp_path)
    for words in (["--html", "--json"], ["--html", "--csv"], ["--open", "--json"]):
        refused = CliRunner().invoke(main, ["report", str(folder), *words])
        assert refused.exit_code == 2
        assert f"--json, --csv and {words[0]} exclude each other" in refused.output
    for form in ("--html", "--open"):
        refused = CliRunner().invoke(main, ["report", f"{folder}:1", form])
        assert refused.exit_code == 2
        assert f"{form} is for one whole run; name one, or leave {form} out" in refused.output
    refused = CliRunner().invoke(main, ["report", "--html", "results/one"])
    assert (refused.exit_code, refused.output) == (
        2,
        "error: --html: got 'results/one'; a file that ends in .html is allowed, and RUN stands before --html\n",
    )
    missing = CliRunner().invoke(main, ["report", str(folder), "--html", "none/page.html"])
    assert missing.exit_code == 2
    assert missing.output.startswith("error: none/page.html: cannot be written")
    assert not (folder / "report.html").exists()


def test_open_writes_the_page_and_hands_it_to_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: asked.append(address))
    folder = write_run(tmp_path, SIX)
    printed = report(folder, "--open")
    assert asked == [(folder / "report.html").resolve().as_uri()]
    assert "no browser was found here" in printed


def test_commands_of_the_page_are_words_of_a_shell(tmp_path: Path) -> None:
    folder = write_run(tmp_path, SIX, name="my run's")
    shell = page_payload([(folder, build_report(folder))])["runs"][0]["shell"]
    assert shlex.split(shell["folder"]) == [str(folder)]
    assert shlex.split("4".join(shell["cost"])) == ["archsearch", "cost", f"{folder}:4"]
    assert shlex.split("4".join(shell["export"])) == ["archsearch", "export", f"{folder}:4", "my run's-4"]


def test_the_same_run_gives_the_same_page_but_for_the_time(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archsearch.report.page.payload.utc_now", lambda: "2026-01-01T00:00:00+00:00")
    for name in ("one.html", "two.html"):
        report(made, "--html", tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_the_other_forms_load_neither_plotly_nor_torch(made: Path) -> None:
    program = (
        "import sys\nfrom archsearch.cli import main\n"
        f"try:\n    main(['report', {str(made)!r}, '--json'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('plotly' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
