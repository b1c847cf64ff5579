"""One trial of a run: its drawing, its place among the others, and what a change of one choice would do, against figures worked out here."""

import json
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.known_machine import SMALL, known_calibration
from support.report_runs import SIX, trial, write_run

from archsearch.cli import main
from archsearch.identity import with_throughput_ids
from archsearch.report.cost import stage_list
from archsearch.report.drawing import Drawing, block_letters, curve_lines
from archsearch.results import SCHEMA, Row
from archsearch.space import Arch, Space, paper, paper_names
from archsearch.throughput import save_calibration
from archsearch.units import format_count

BAND = (2_000_000, 4_000_000)
GIVEN = {"given": "nets:small", "kind": "Sequential", "version": "1", "image_size": 32, "uncounted": ["lstm"]}
CURVE = [
    {"steps": 25, "score": 0.31, "standard_error": 0.01, "proxy_id": "a", "seconds": 1.0},
    {"steps": 400, "score": 0.70, "standard_error": 0.01, "proxy_id": "b", "seconds": 9.0},
]
Report = Callable[..., Result]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """`archsearch report ...` in a folder of its own, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, ["report", *arguments], env=environment)

    return run


def small() -> Space:
    return Space(tomllib.loads(SMALL), "small.toml", SMALL)


def drawn(number: int) -> Arch:
    """The architecture of the small space whose choices these seeds make."""
    rng, made = random.Random(number), dict[str, Any]()

    def pick(name: str, choices: Sequence[Any]) -> Any:
        return made.setdefault(name, rng.choice(list(choices)))

    return small().sample(pick)


def row_of(number: int, arch: Arch, score: float | None, **changes: Any) -> Row:
    cost = arch.cost()
    own = {"arch_id": arch.arch_id, "architecture": arch.describe(), "macs": cost.macs, "activations": cost.activations}
    return trial(number, score, 100.0, cost.params, arch=json.dumps(arch.to_dict()), image_size=32, **(own | changes))


def make_run(root: Path, **extra: Any) -> Path:
    """Three candidates, a paper's model, a network without an architecture, and trials that failed, were stopped, or are at work."""
    archs = [drawn(number) for number in range(6)]
    rows = [
        row_of(0, archs[0], 0.70, learning_curve=json.dumps(CURVE)),
        row_of(1, archs[1], 0.80),
        row_of(2, paper("van_b0"), 0.60, is_fixed=True, paper="van_b0"),
        trial(3, 0.5, 90.0, 1000, is_fixed=True, paper="nets:small", arch=json.dumps(GIVEN), image_size=32),
        row_of(4, archs[3], None),
        row_of(5, archs[4], None, state="stopped", reason="after 25 of 400 steps", rung=1, rung_score=0.1),
        row_of(6, archs[5], None, state="running", reason=None, throughput_img_s=None),
    ]
    manifest = {"band": list(BAND), "budget_macs": 3_000_000, "space": {"name": "small", "sha256": "0" * 64}, **extra}
    folder = write_run(root, rows, extra=manifest)
    (folder / "space.toml").write_text(SMALL)
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    whole["settings"]["image_size"] = 32
    path.write_text(json.dumps(whole))
    return folder


def shown(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def changed(arch: Arch, name: str, value: Any, params: dict[str, Any]) -> Arch:
    """The architecture with one choice changed, put together by the space's own door."""

    def pick(each: str, choices: Sequence[Any]) -> Any:
        wanted = value if each == name else params.get(each)
        return wanted if wanted in choices else choices[0]

    return small().sample(pick)


def test_changes_are_those_that_the_space_gives_and_the_band_marks_them(tmp_path: Path, report: Report) -> None:
    make_run(tmp_path)
    document = shown(report("one:0", "--json"))["changes"]
    own, rng, params = drawn(0).cost(), random.Random(0), dict[str, Any]()
    small().sample(lambda name, choices: params.setdefault(name, rng.choice(list(choices))))
    assert document["number"] == len(document["changes"]) > 5
    for each in document["changes"]:
        other = changed(drawn(0), each["name"], each["new"], params)
        assert (each["arch_id"], each["macs"], each["params"]) == (
            other.arch_id,
            other.cost().macs,
            other.cost().params,
        )
        assert each["macs_change"] == pytest.approx(other.cost().macs / own.macs - 1)
        assert bool(each["outside"]) == (not BAND[0] <= other.cost().macs <= BAND[1])
    outside = [bool(each["outside"]) for each in document["changes"]]
    assert outside == sorted(outside), "those inside the band come first"
    assert document["inside"] == outside.count(False)


@pytest.mark.parametrize("columns", ["120", "224"])
def test_the_layers_are_those_of_the_trials_own_images_at_any_width(
    tmp_path: Path, report: Report, columns: str
) -> None:
    make_run(tmp_path)
    result, cost = report("one:0", COLUMNS=columns), drawn(0).cost()
    assert result.exit_code == 0, result.output
    (total,) = re.findall(r"^total +(.*)$", result.stdout, re.MULTILINE)
    counts = [len(list(drawn(0).layers())), cost.macs, cost.params, cost.activations]
    assert total.split() == [*map(format_count, counts[:3]), "100.0%", format_count(counts[3])]


def test_a_change_that_was_a_trial_says_which(tmp_path: Path, report: Report) -> None:
    folder = make_run(tmp_path)
    other = shown(report("one:0", "--json"))["changes"]["changes"][0]["arch_id"]
    rows = [row_of(0, drawn(0), 0.7), trial(1, 0.5, 100.0, 1000, arch_id=other, image_size=32)]
    (folder / "space.toml").rename(tmp_path / "space.toml")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_run(tmp_path, rows, extra={"settings": {"image_size": 32, "proxy": {}, "device": "cpu"}, "band": None})
    (tmp_path / "space.toml").rename(folder / "space.toml")
    found = {each["arch_id"]: each["trial"] for each in shown(report("one:0", "--json"))["changes"]["changes"]}
    assert found.pop(other) == 1
    assert set(found.values()) == {None}


def test_predicted_speeds_are_the_calibrations(tmp_path: Path, report: Report) -> None:
    _, calibration = known_calibration(tmp_path / "results")
    save_calibration(calibration)
    make_run(tmp_path, calibration={"file": str(calibration.path), "kendall_tau": 0.9, "mape": 0.1})
    document = shown(report("one:0", "--json"))["changes"]
    own = calibration.predict(drawn(0))
    assert own is not None
    assert document["predicted_img_s"] == pytest.approx(own)
    by_id = {drawn(number).arch_id: drawn(number) for number in range(200)}
    known = [each for each in document["changes"] if each["arch_id"] in by_id]
    assert known
    for each in known:
        predicted = calibration.predict(by_id[each["arch_id"]])
        assert predicted is not None
        assert each["speed_change"] == pytest.approx(predicted / own - 1)
    text = report("one:0").stdout
    assert "speed" in text
    assert f"{own:.1f} images/s predicted" in " ".join(text.split())


@pytest.mark.parametrize(
    ("file", "words"), [(None, "no calibration"), ("results/calibration/gone.parquet", "not there any more")]
)
def test_without_a_calibration_it_says_why_there_are_no_speeds(
    tmp_path: Path, report: Report, file: str | None, words: str
) -> None:
    make_run(tmp_path, calibration=file and {"file": file, "kendall_tau": 0.9, "mape": 0.1})
    result = report("one:0")
    assert result.exit_code == 0, result.output
    assert words in " ".join(result.stdout.split())


def test_costs_of_the_stages_are_those_of_the_whole(tmp_path: Path, report: Report) -> None:
    make_run(tmp_path)
    document, cost = shown(report("one:1", "--json")), drawn(1).cost()
    for parts in ("stages", "layers"):
        assert sum(part["macs"] for part in document[parts]) == cost.macs == document["figures"]["macs"]
        assert sum(part["params"] for part in document[parts]) == cost.params
    stages = [part for part in document["stages"] if part["depth"]]
    assert [(part["width"], part["depth"]) for part in stages] == [(each.width, each.depth) for each in drawn(1).stages]


def test_place_and_dominance_are_those_worked_out_by_hand(tmp_path: Path, report: Report) -> None:
    """Trial 3 beats davit_tiny in everything, van_b2 beats trial 4; 6 is 3 again."""
    write_run(tmp_path, SIX)
    place = shown(report("one:3", "--json"))["place"]
    assert place["is_on_front"]
    assert [each["paper"] for each in place["dominates_papers"]] == ["davit_tiny"]
    assert place["dominated_by_papers"] == []
    place = shown(report("one:4", "--json"))["place"]
    assert not place["is_on_front"]
    assert [each["paper"] for each in place["dominated_by_papers"]] == ["van_b2"]
    assert 1 in place["dominated_by"]
    assert "repeats trial 3" in shown(report("one:6", "--json"))["place"]["reason"]
    assert "space.toml" in shown(report("one:3", "--json"))["changes"]["reason"]
    fixed = shown(report("one:1", "--json"))
    assert fixed["published"]["top1"] == 82.8
    assert fixed["place"]["num_dominates"] == 1


def test_a_papers_figures_stand_beside_its_model_whatever_came_of_it(tmp_path: Path, report: Report) -> None:
    """One that failed, and one that was timed elsewhere, which the report does not rank."""
    on = [{"device_name": name, "conditions": json.dumps({"device_name": name})} for name in ("A100", "H100")]
    rows = [
        trial(0, 0.7, 20.0, 28_360_168, is_fixed=True, paper="van_b2", **on[0]),
        trial(1, None, None, 28_360_168, is_fixed=True, paper="van_b2"),
        trial(2, 0.8, 30.0, 10, **on[1]),
    ]
    write_run(tmp_path, with_throughput_ids(rows))
    assert shown(report("one:0", "--json"))["published"]["top1"] == 82.8
    assert shown(report("one:1", "--json"))["published"]["top1"] == 82.8
    assert shown(report("one:2", "--json"))["published"] is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "Learning curve"),
        (2, "the paper says"),
        (3, "no choice to change"),
        (4, "out of memory"),
        (5, "after 25 of 400 steps"),
        (6, "still at work"),
    ],
)
def test_every_kind_of_trial_is_shown_within_80_columns(
    tmp_path: Path, report: Report, number: int, words: str
) -> None:
    make_run(tmp_path)
    result = report(f"one:{number}")
    assert result.exit_code == 0, result.output
    assert words in " ".join(result.stdout.split())
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert set(shown(report(f"one:{number}", "--json"))["figures"]) < set(SCHEMA.names)


def test_a_trial_is_named_as_elsewhere(tmp_path: Path, report: Report) -> None:
    make_run(tmp_path)
    by_number = report("one:1").stdout
    assert report(":1").stdout == by_number
    assert report(f"results/one:{drawn(1).arch_id[:6]}").stdout == by_number
    for text, wanted in (("one:77", "0 to 6"), ("two:1", "one"), ("one:", "0 to 6")):
        result = report(text)
        assert result.exit_code == 2
        assert wanted in result.stderr
    assert report("one:1", "--csv").exit_code == 2


def test_a_network_without_an_architecture_is_shown_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path)
    program = (
        "import sys; from archsearch.cli import main\n"
        "try: main(['report', 'one:3'])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lstm" in done.stdout


# The drawing


def rows_of(arch: Arch, width: int, *, is_plain: bool) -> list[str]:
    return [line.plain for line in Drawing(stage_list(arch), "224 px").lines(width, is_plain=is_plain)]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 140])
def test_every_papers_model_is_drawn_within_the_width(width: int) -> None:
    for name in paper_names():
        for is_plain in (True, False):
            rows = rows_of(paper(name), width, is_plain=is_plain)
            drawing = rows[:-2]  # the two sentences are folded by the console
            assert drawing[0].startswith("stage") or max(map(len, drawing)) <= width, name
            assert not is_plain or all(row.isascii() for row in rows)


def test_a_column_is_a_block_and_its_height_the_width() -> None:
    arch = paper("twins_svt_small")
    stages, rows = [stage for stage in stage_list(arch) if stage["depth"]], rows_of(arch, 80, is_plain=True)
    letters = block_letters([kind for stage in stages for kind in stage["kinds"]])
    columns = zip(*(row.ljust(80) for row in rows[:8]), strict=True)
    heights = [height for column in columns if (height := sum(sign != " " for sign in column))]
    widest = max(stage["width"] for stage in stages)
    expected = [round(8 * stage["width"] / widest) for stage in stages for _ in range(2 * stage["depth"])]
    assert heights == expected, "two signs for a block, as there is room for three"
    foot = [letters[kind] for stage in stages for kind in stage["kinds"]]
    assert [word[0] for word in rows[7].split()] == foot


def test_letters_of_blocks_are_their_own_and_differ() -> None:
    assert block_letters(["lsa", "gsa", "lsa", "lka", "lda"]) == {"lsa": "L", "gsa": "G", "lka": "K", "lda": "D"}
    many = block_letters([f"a{number}" for number in range(26)])
    assert len(set(many.values())) == 26


def test_a_learning_curve_has_a_line_for_each_point() -> None:
    first, second = curve_lines(CURVE, 80, is_plain=True)
    assert "0.310" in first
    assert "+0.390" in second
    assert second.count("#") == round(40 * 0.7)
    assert first.count("#") == round(40 * 0.31)
