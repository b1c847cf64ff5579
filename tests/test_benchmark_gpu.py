"""`gpu.py` keeps what it measured whatever ends it, says what it left out, and judges figures by its targets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from gpu import SECTIONS, main
from gpu_rows import KEY, SCHEMA, Row, card_file, merged, read_rows, write_rows
from gpu_tables import SHOWN_COMMIT, SHOWN_FILE, network_cells, operation_cells, verdicts

CHECKOUT = Path(__file__).parent.parent
KEPT = CHECKOUT / "results" / "benchmarks" / SHOWN_FILE


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "tests/benchmarks/gpu.py", "--out", str(folder), "--commit", "tested", *options]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(folder, *options),
        cwd=CHECKOUT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path, *options: str) -> tuple[int, str, str]:
    process = start(folder, *options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def a_row(**changes: object) -> Row:
    """A figure of an earlier commit."""
    row = {"section": "peaks", "what": "copy", "side": "torch", "value": 3.0, "unit": "TB/s", "commit": "before"}
    return row | changes


# The file


def test_a_later_figure_takes_the_place_of_the_same_of_its_commit_alone(tmp_path: Path) -> None:
    path = card_file(tmp_path, "NVIDIA H100 80GB HBM3")
    assert path.name == SHOWN_FILE
    write_rows(path, merged([a_row(), a_row(commit="now"), a_row(value=4.0), a_row(what="other"), a_row(dtype="tf32")]))
    rows = read_rows(path)
    assert [(row["commit"], row["what"], row["dtype"], row["value"]) for row in rows] == [
        ("before", "copy", None, 4.0),
        ("now", "copy", None, 3.0),
        ("before", "other", None, 3.0),
        ("before", "copy", "tf32", 3.0),
    ]
    assert merged(rows) == rows


def test_the_kept_file_has_the_schema_and_every_figure_once() -> None:
    assert pq.read_schema(KEPT).equals(SCHEMA)
    rows = read_rows(KEPT)
    assert merged(rows) == rows
    assert len({tuple(row[name] for name in KEY) for row in rows}) == len(rows)
    assert all(row["note"] for row in rows if row["value"] is None)
    assert all("H100" in row["conditions"] for row in rows)


# What is shown of it; that page `benchmarks` shows these tables is tested with the other tables of the documentation.


def test_ratios_are_to_timm_in_its_faster_layout() -> None:
    job = {"section": "forward", "what": "davit_tiny", "unit": "img/s", "dtype": "bfloat16", "mode": "eager"}
    ours, slow, fast = (
        a_row(**job, side=side, layout=layout, value=value)
        for side, layout, value in (
            ("ours", "channels_last", 900.0),
            ("timm", "channels_last", 500.0),
            ("timm", "contiguous", 600.0),
        )
    )
    ((name, *_, eager, ratio, compiled, no_ratio, _, _, _),) = network_cells([ours, slow, fast])
    assert (name, eager, ratio, compiled, no_ratio) == ("davit_tiny", "900", "1.50", "-", "-")


def test_an_operation_is_shown_with_the_fastest_other_way() -> None:
    job = {"section": "kernels", "what": "patch", "unit": "ms", "dtype": "bfloat16", "mode": "forward"}
    times = {"ours": None, "torch": 0.5, "by hand": 0.25, "contiguous": 0.75}
    rows = [a_row(**job, side=side, value=value) for side, value in times.items()]
    assert operation_cells(rows) == [["patch", "bfloat16", "forward", "-", "0.500", "0.250 (by hand)"]]


def test_targets_are_judged_by_the_figures() -> None:
    rows = [row for row in read_rows(KEPT) if row["commit"] == SHOWN_COMMIT]
    judged = {verdict.what: verdict for verdict in verdicts(rows)}
    least = judged["least ratio to timm of 4 models, compile (twins_pcpvt_small)"]
    assert (least.figure, least.is_reached) == (f"{12357 / 15622:.3f}", False)
    mean = (8068 / 7532 * 12562 / 7707 * 10065 / 9597 * 7110 / 6771) ** 0.25
    assert judged["geometric mean of the ratios, eager"].figure == f"{mean:.3f}"
    assert judged["fixed trials that train at batch 1,024"].figure == "5"
    assert judged["tau between two orders"].figure is None
    assert judged["CUDA tests that fail"].is_reached
    assert str(judged["tau between two orders"]).startswith("not measured")


# The command


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    """The exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--out", str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--smoke" in err
    assert list(tmp_path.iterdir()) == []


def test_sections_that_do_not_fit_are_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--out", str(tmp_path), "--smoke", "--seconds", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if ": skipped: " in line] == list(SECTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sections_write_rows_of_the_schema_and_leave_those_of_other_commits(tmp_path: Path) -> None:
    path = tmp_path / "gpu-smoke.parquet"
    write_rows(path, merged([a_row()]))
    code, out, _ = finish(tmp_path, "--smoke", "--section", "kernels", "--section", "peaks")
    assert code == 0
    assert pq.read_schema(path).equals(SCHEMA)
    before, *rows = read_rows(path)
    assert before["commit"] == "before"
    assert {row["section"] for row in rows} == {"peaks", "kernels"}
    assert {row["commit"] for row in rows} == {"tested"}
    assert all(row["value"] > 0 if row["note"] is None else row["value"] is None for row in rows)
    assert out.index("peaks:") < out.index("kernels:")
    assert "layer norm" in out
    assert "not measured" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_is_killed_leaves_what_was_measured(
    tmp_path: Path, number: signal.Signals, pytestconfig: pytest.Config
) -> None:
    if number == signal.SIGKILL and not pytestconfig.getoption("whole"):
        pytest.skip("as the other: with --whole")
    path = tmp_path / "gpu-smoke.parquet"
    process = start(tmp_path, "--smoke", "--section", "kernels")
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    assert 0 < len(read_rows(path)) < 40
    assert ("interrupted" in out) == (number == signal.SIGTERM)


@pytest.mark.slow
def test_every_section_runs(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("whole"):
        pytest.skip("takes minutes: with --whole")
    code, out, err = finish(tmp_path, "--smoke", "--seconds", "900")
    assert code == 0, err
    rows = read_rows(tmp_path / "gpu-smoke.parquet")
    assert list(dict.fromkeys(row["section"] for row in rows)) == list(SECTIONS)
    assert [row for row in rows if row["value"] is None and "skipped" not in (row["note"] or "")] == []
    assert "cut short" not in out
