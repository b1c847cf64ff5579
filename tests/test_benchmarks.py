"""The benchmark scripts run, and write the columns that the page `benchmarks` documents."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.browser import executable

CHECKOUT = Path(__file__).parent.parent
PAGE = (CHECKOUT / "archsearch" / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("blocks", ["--only", "lka", "--stage", "4"], 2 * 2),  # two dtypes, two passes
        ("against_timm", ["--tasks", "forward", "memory"], 3 + 2),
        ("repeatability", ["--busy", "1", "--drawn", "2"], 2 * 2),
        ("samplers", ["--problems", "cifar10"], 2 * 2 * 2),  # samplers, seeds, marks
        ("earlier_runs", [], 3 * 2 * 6),  # without an earlier run, with one, and with its scores reversed
        ("ask_time", [], 4 + 3 * 2),  # the sampler on a table and a pool; those of runs, by batches of 1 and 8
        ("front_seeds", [], 2 * 3 * 3),  # two searches, three ways to spend and to judge
        ("spectral_readings", [], 2 + 8),  # two counts and eight readings
        ("exports", ["--formats", "timm", "safetensors", "toml"], 3),  # of the cheapest paper's model
        ("rungs", [], 2 * 2 * 20),  # two samplers, with rungs and without
        ("report_time", [], 2 * 2),  # a run with and without stopped trials, as text and as JSON
    ],
)
def test_script_writes_documented_columns(tmp_path: Path, script: str, options: list[str], rows: int) -> None:
    assert run_script(tmp_path, script, options).num_rows == rows


@pytest.mark.slow
def test_a_compiled_network_copies_no_map(tmp_path: Path) -> None:
    """PCPVT's norms feed a convolution and a Linear, which the compiler would lay out differently; the images alone are copied, into channels_last."""
    table = run_script(tmp_path, "compiled_graphs", ["--models", "twins_pcpvt_small"])
    (row,) = table.to_pylist()
    assert (row["convolutions"], row["attentions"], row["copies"]) == (4 + 3 + 4, 4, 1)


@pytest.mark.slow
def test_compiling_is_timed_cold_warm_and_ahead(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("two empty caches of the compiler take minutes; --whole runs it")
    assert run_script(tmp_path, "compile_time", [], timeout_s=600).num_rows == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [("exports", ["--format", "onnx"], 1), ("runtimes", ["--without", "torch compile", "openvino"], 2 * 2)],
)
def test_networks_are_exported_and_timed_in_runtimes(
    request: pytest.FixtureRequest, tmp_path: Path, script: str, options: list[str], rows: int
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("exporting takes half a minute a network; --whole runs it")
    if importlib.util.find_spec("onnxscript") is None or importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("archsearch[onnxruntime] is not installed")
    assert run_script(tmp_path, script, options, timeout_s=1200).num_rows == rows


@pytest.mark.slow
def test_the_page_is_timed(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    executable()
    assert run_script(tmp_path, "page_time", []).num_rows == 1


@pytest.mark.slow
def test_many_workers_are_measured(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("a process for each row takes 15 s of a core; --whole runs it")
    assert run_script(tmp_path, "many_workers", ["--only", "real", "simulated"]).num_rows == 2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["botorch-4", "ax"])
def test_rival_samplers_are_measured(request: pytest.FixtureRequest, tmp_path: Path, sampler: str) -> None:
    if importlib.util.find_spec("ax") is None:
        pytest.skip("ax-platform, which brings BoTorch and Ax, is not installed")
    if not request.config.getoption("--whole"):
        pytest.skip("50 evaluations take a minute or two of a core; --whole runs it")
    assert run_script(tmp_path, "samplers", ["--problems", "cifar10", "--only", sampler], timeout_s=600).num_rows == 4


@pytest.mark.slow
def test_a_rival_that_is_not_installed_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("ax") is not None:
        pytest.skip("ax-platform is installed")
    command = ["tests/benchmarks/samplers.py", "--smoke", "--out", str(tmp_path), "--only", "ax"]
    result = subprocess.run(
        [sys.executable, *command],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "samplers.py: ax is not installed; rival_samplers.py says how it is"


def run_script(tmp_path: Path, script: str, options: list[str], timeout_s: float = 120) -> pa.Table:
    """The file that a script writes with --smoke, all of whose columns the page explains."""
    command = [sys.executable, f"tests/benchmarks/{script}.py", "--smoke", "--out", str(tmp_path), *options]
    subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=True, timeout=timeout_s
    )
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    environment = json.loads(table.schema.metadata[b"environment"])
    assert environment["threads"] == 1
    assert "--smoke" in environment["command"]
    assert [name for name in table.column_names if f"`{name}`" not in PAGE] == []
    shared = {"model", "dtype", "batch_size"} & set(table.column_names)
    assert all(None not in table[name].to_pylist() for name in shared)
    return table


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "results" / "benchmarks").glob("*.parquet")), ids=lambda path: path.stem
)
def test_every_kept_column_is_documented(path: Path) -> None:
    assert [name for name in pq.read_schema(path).names if f"`{name}`" not in PAGE] == []
