"""The list of runs: its figures are those of each run's report, and a damaged run is one line of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support.report_runs import SIX, trial, write_run

from archsearch.cli import main
from archsearch.report import build_report
from archsearch.results import read_columns, read_manifest, write_manifest
from archsearch.system import flocked

Runs = Callable[..., Result]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`archsearch runs ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, width: int = 140) -> Result:
        return CliRunner().invoke(main, ["runs", *arguments], env={"COLUMNS": str(width)})

    return run


def listed(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout, parse_constant=lambda word: pytest.fail(word))["runs"]
    return found


def written_at(folder: Path, seconds: int) -> None:
    os.utime(folder / "manifest.json", (seconds, seconds))


def test_runs_are_listed_newest_first_with_the_figures_of_their_reports(tmp_path: Path, runs: Runs) -> None:
    old = write_run(tmp_path, SIX, name="old")
    timings = [
        trial(number, 0.5 + 0.1 * number, 20.0 + number, 10, mode="compile" if number else "eager")
        for number in range(3)
    ]
    new = write_run(
        tmp_path, timings, name="new", objectives=("params", "throughput_img_s"), extra={"budget_macs": None}
    )
    written_at(old, 1000)
    written_at(new, 2000)
    (tmp_path / "results" / "calibration").mkdir()
    found = listed(runs("--json"))
    assert [run["run"] for run in found] == ["new", "old"]
    for run in found:
        report = build_report(Path(run["folder"]))
        assert run["hypervolume"] == report["hypervolume"]["value"]
        assert run["front"] == len(report["front"])
        assert run["trials"] == {name: report["trials"][name] for name in ("complete", "asked")}
        assert run["bytes"] == sum(path.stat().st_size for path in Path(run["folder"]).iterdir())
        assert run["state"] == "complete"
        assert run["problem"] is None
    assert found[1]["best_score"] == {"value": 0.80, "standard_error": 0.01, "trial": 1}
    assert found[1]["device_name"] == "a test's CPU"
    since = time.time() - 1767326400  # 2026-01-02T04:00:00Z
    assert found[1]["age_s"] == pytest.approx(since, abs=60)
    text = runs().stdout
    assert "two runs' values are not comparable" in " ".join(text.split())
    assert text.index("new") < text.index("old")


def test_a_file_of_a_version_without_identities_is_ranked_as_its_report_ranks_it(tmp_path: Path, runs: Runs) -> None:
    def on(device: str) -> dict[str, Any]:
        return {"conditions": json.dumps({"device_name": device})}

    rows = [trial(number, 0.5, 9000.0 + number, 10 + number, **on("A100")) for number in range(3)]
    rows += [trial(number, 0.5, 20.0 + number, 10 + number, **on("H100")) for number in range(3, 6)]
    folder = write_run(tmp_path, rows)
    table = pq.read_table(folder / "trials.parquet")
    pq.write_table(table.select(table.column_names[: table.column_names.index("run")]), folder / "trials.parquet")
    (run,) = listed(runs("--json"))
    report = build_report(folder)
    assert report["hypervolume"]["trials"] == 3
    assert (run["hypervolume"], run["front"]) == (report["hypervolume"]["value"], len(report["front"]))


def test_damaged_runs_are_lines_of_the_list_with_their_problem(tmp_path: Path, runs: Runs) -> None:
    write_run(tmp_path, SIX, name="good")
    damages: dict[str, Callable[[Path], object]] = {
        "text": lambda folder: (folder / "manifest.json").write_text("{"),
        "format": lambda folder: (folder / "manifest.json").write_text('{"format_version": 9}'),
        "keys": lambda folder: write_manifest({"name": "x"}, folder),
        "types": lambda folder: write_manifest({**read_manifest(folder), "settings": 1}, folder),
        "time": lambda folder: write_manifest({**read_manifest(folder), "updated_at": "now"}, folder),
        "lost": lambda folder: (folder / "manifest.json").unlink(),
        "table": lambda folder: (folder / "trials.parquet").write_bytes(b"PAR1"),
        "none": lambda folder: (folder / "trials.parquet").unlink(),
    }
    for name, damage in damages.items():
        damage(write_run(tmp_path, SIX, name=name))
    (tmp_path / "results" / "a file").write_text("")
    (tmp_path / "results" / "broken link").symlink_to("nowhere")
    found = {run["run"]: run for run in listed(runs("--json"))}
    assert set(found) == {"good", *damages}
    for name in damages:
        assert found[name]["state"] == "damaged"
        assert f"results/{name}" in found[name]["problem"]
        assert found[name]["bytes"] > 0
    assert found["good"]["problem"] is None
    for width in (50, 140):
        text = runs(width=width).stdout
        assert text.count("Damaged: results/") == len(damages)


def test_a_run_at_work_is_told_from_a_killed_one_also_before_its_first_manifest(tmp_path: Path, runs: Runs) -> None:
    write_run(tmp_path, SIX, name="killed", state="running")
    at_work = write_run(tmp_path, SIX, name="at_work", state="running")
    begun = tmp_path / "results" / "begun"
    begun.mkdir()
    (begun / "study.db").touch()
    for folder in (at_work, begun):
        (folder / "run.lock").touch()
    with (
        (at_work / "run.lock").open() as one,
        (begun / "run.lock").open() as other,
        flocked(one.fileno()),
        flocked(other.fileno()),
    ):
        states = {run["run"]: (run["state"], run["problem"]) for run in listed(runs("--json"))}
        assert runs().stdout.count("at work") == 2
    assert states == {
        name: (state, None) for name, state in {"killed": "killed", "at_work": "running", "begun": "running"}.items()
    }
    assert {run["state"] for run in listed(runs("--json"))} == {"killed", "damaged"}


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, [trial(number, 0.5, 20.0, 10) for number in range(50)])
    path = folder / "trials.parquet"
    group = pq.ParquetFile(path).metadata.row_group(0)
    (column,) = (
        group.column(place) for place in range(group.num_columns) if group.column(place).path_in_schema == "arch"
    )
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = os.urandom(column.total_compressed_size)
    path.write_bytes(bytes(content))
    (run,) = listed(runs("--json"))
    assert (run["trials"]["complete"], run["problem"]) == (50, None)
    assert read_columns(folder, ["params"]).to_pydict() == {"params": [10] * 50}
    assert CliRunner().invoke(main, ["report", "--csv", str(folder)]).exit_code == 2


def test_no_run_is_a_sentence(tmp_path: Path, runs: Runs) -> None:
    assert listed(runs("--json")) == []
    assert "holds no run" in runs().stdout


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_cell_is_cut_or_broken_at_any_width(width: int, tmp_path: Path, runs: Runs) -> None:
    write_run(tmp_path, SIX, name="hybrid-4.5G-6d51bc")
    lines = runs(width=width).stdout.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).replace(",", " ").split()
    for cell in ("hybrid-4.5G-6d51bc", "4.50G", "0.800", "complete", "6 of 8".split()[0], "KiB"):
        assert cell in words


def test_the_list_and_the_comparison_load_no_torch(tmp_path: Path, runs: Runs) -> None:
    write_run(tmp_path, SIX, name="one")
    write_run(tmp_path, SIX, name="two")
    program = (
        "import sys; from archsearch.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'optuna'} & set(sys.modules)), file=sys.stderr)"
    )
    for words in (["runs"], ["report", "one", "two"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "[]"
        assert len(done.stdout) > 400
