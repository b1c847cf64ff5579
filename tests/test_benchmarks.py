"""The benchmark scripts run, and write the columns that the page `benchmarks` documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

CHECKOUT = Path(__file__).parent.parent
PAGE = (CHECKOUT / "archsearch" / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("blocks", ["--only", "lka", "--stage", "4"], 2 * 2),  # two dtypes, two passes
        ("against_timm", ["--tasks", "forward", "memory"], 3 + 2),
        ("repeatability", ["--busy", "1", "--drawn", "2"], 2 * 2),
        ("samplers", ["--problems", "cifar10"], 4),
        ("ask_time", [], 4),
        ("rungs", [], 2 * 2 * 20),  # two samplers, with rungs and without
        ("compile_time", [], 3),
    ],
)
def test_script_writes_documented_columns(
    request: pytest.FixtureRequest, tmp_path: Path, script: str, options: list[str], rows: int
) -> None:
    if script == "compile_time" and not request.config.getoption("--whole"):
        pytest.skip("two empty caches of the compiler take minutes; --whole runs it")
    command = [sys.executable, f"tests/benchmarks/{script}.py", "--smoke", "--out", str(tmp_path), *options]
    subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=True, timeout=600)
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    assert table.num_rows == rows
    environment = json.loads(table.schema.metadata[b"environment"])
    assert environment["threads"] == 1
    assert "--smoke" in environment["command"]
    assert [name for name in table.column_names if f"`{name}`" not in PAGE] == []
    shared = {"model", "dtype", "batch_size"} & set(table.column_names)
    assert all(None not in table[name].to_pylist() for name in shared)


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "results" / "benchmarks").glob("*.parquet")), ids=lambda path: path.stem
)
def test_every_kept_column_is_documented(path: Path) -> None:
    assert [name for name in pq.read_schema(path).names if f"`{name}`" not in PAGE] == []
