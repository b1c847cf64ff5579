"""The files of a run: schema, fronts, atomic writing, and the errors for missing and damaged ones."""

import json
import math
import os
import resource
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import moocore
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from archsearch import results
from archsearch.errors import UserError
from archsearch.results import Row

# The contract with the readers of our files: columns may be added at the end, never changed.
FROZEN = """
trial: int64 not null
arch_id: string not null
state: string not null
reason: string
is_fixed: bool not null
paper: string
in_band: bool not null
reused_from: int64
front: int64
macs: int64 not null
macs_fvcore: int64
params: int64 not null
architecture: string not null
throughput_img_s: double
throughput_iqr: double
latency_ms: double
throughput_noisy: bool
throughput_ratio: double
throughput_drift: double
peak_memory_bytes: int64
proxy_score: double
proxy_score_se: double
proxy_id: string
proxy_train_loss: double
proxy_retried: bool
device: string not null
device_name: string
dtype: string not null
mode: string not null
batch_size: int64 not null
image_size: int64 not null
seed: int64 not null
started_at: timestamp[ms, tz=UTC] not null
finished_at: timestamp[ms, tz=UTC]
seconds_count: double
seconds_throughput: double
seconds_proxy: double
seconds_total: double
archsearch_version: string not null
torch_version: string
python_version: string not null
conditions: string
arch: string not null
throughput_predicted_img_s: double
throughput_again_img_s: double
throughput_again_iqr: double
throughput_again_ratio: double
throughput_change: double
rung: int64
rung_score: double
rung_score_se: double
rung_proxy_id: string
learning_curve: string
train_images: int64
proxy_seeds: int64
proxy_score_mean: double
proxy_score_sd: double
proxy_seed_scores: string
proxy_loader_images_s: double
proxy_step_images_s: double
proxy_micro_batch: int64
free_naswot: double
free_zico: double
free_expressivity: double
free_progressivity: double
free_trainability: double
run: string
space: string
budget_macs: int64
schema_version: int64
throughput_id: string
throughput_raw_img_s: double
throughput_again_raw_img_s: double
other_cores: double
compile_s: double
proxy_peak_memory_bytes: int64
activations: int64
outside: string
train_memory_bytes: int64
taken_from: string
""".strip().splitlines()

OBJECTIVES = ("proxy_score", "throughput_img_s", "params")


def make_row(trial: int, **values: Any) -> Row:
    row: Row = dict.fromkeys(results.SCHEMA.names)
    row |= {"trial": trial, "arch_id": f"{trial:012x}", "state": "complete", "is_fixed": False, "in_band": True}
    row |= {"macs": 4_500_000_000, "params": 25_000_000, "architecture": "lka 64x3", "arch": "{}", "seed": 0}
    row |= {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 4, "image_size": 224}
    row |= {"proxy_id": "stub", "throughput_img_s": 100.0, "proxy_score": 0.5}
    row |= {"started_at": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)}
    row |= {"archsearch_version": "0.1.0", "python_version": "3.11.4"}
    return {**row, **values}


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        make_row(
            trial,
            proxy_score=round(rng.random(), 2),
            throughput_img_s=round(100 * rng.random(), 0),
            params=int(rng.integers(20, 40)),
            macs=int(rng.integers(40, 50)),
        )
        for trial in range(count)
    ]


def write(rows: list[Row], folder: Path) -> list[Row]:
    rows = results.ranked(rows, OBJECTIVES)
    results.write_trials(rows, folder)
    results.write_front(rows, folder, OBJECTIVES)
    return rows


def words(schema: Any) -> list[str]:
    return [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema]


def test_schema_is_frozen(tmp_path: Path) -> None:
    write(random_rows(3), tmp_path)
    assert words(results.SCHEMA) == FROZEN
    assert words(pq.read_schema(tmp_path / "trials.parquet")) == FROZEN
    assert words(pq.read_schema(tmp_path / "front.parquet")) == ["front_name: string not null", *FROZEN]


def test_pandas_pyarrow_and_duckdb_read_the_same(tmp_path: Path) -> None:
    rows = write([*random_rows(20), make_row(20, state="failed", reason="no memory", proxy_score=None)], tmp_path)
    path = str(tmp_path / "trials.parquet")
    frame, table = pd.read_parquet(path), pq.read_table(path)
    query = f"select trial, proxy_score, reason, front, epoch_ms(started_at) from '{path}' order by trial"
    fetched = duckdb.connect().execute(query).fetchall()
    expected = [
        (row["trial"], row["proxy_score"], row["reason"], row["front"], round(row["started_at"].timestamp() * 1000))
        for row in rows
    ]
    assert fetched == expected
    assert table.column("proxy_score").to_pylist() == [row["proxy_score"] for row in rows]
    assert frame["macs"].tolist() == [row["macs"] for row in rows]
    assert frame["reason"].dropna().tolist() == ["no memory"]
    assert results.read_trials(tmp_path).equals(frame)


def test_ranks_are_moocores(tmp_path: Path) -> None:
    rows = write(random_rows(200), tmp_path)
    values = [[-row["proxy_score"], -row["throughput_img_s"], row["params"]] for row in rows]
    assert [row["front"] for row in rows] == moocore.pareto_rank(np.array(values)).tolist()


def test_fronts_are_moocores(tmp_path: Path) -> None:
    rows = write(random_rows(200, seed=1), tmp_path)
    front = results.read_front(tmp_path)
    axes = {
        "objectives": ("proxy_score", "throughput_img_s", "params"),
        "proxy_score/macs": ("proxy_score", "macs"),
        "proxy_score/params": ("proxy_score", "params"),
        "proxy_score/throughput_img_s": ("proxy_score", "throughput_img_s"),
    }
    assert set(front["front_name"]) == set(axes)
    for name, columns in axes.items():
        signs = np.array([1 if column in ("macs", "params") else -1 for column in columns])
        values = np.array([[float(row[column]) for column in columns] for row in rows]) * signs
        kept = moocore.is_nondominated(values, keep_weakly=True)
        assert front.loc[front["front_name"] == name, "trial"].tolist() == np.flatnonzero(kept).tolist()
        if name == "objectives":
            worst = values.max(axis=0) + 1
            assert math.isclose(moocore.hypervolume(values[kept], ref=worst), moocore.hypervolume(values, ref=worst))


def test_only_complete_rows_are_ranked_and_a_reused_one_stands_once(tmp_path: Path) -> None:
    rows = write(
        [
            make_row(0),
            make_row(1, state="failed", proxy_score=0.9),
            make_row(2, state="running", proxy_score=None),
            make_row(3, reused_from=0),
            make_row(4, proxy_score=0.1),
        ],
        tmp_path,
    )
    assert [row["front"] for row in rows] == [0, None, None, 0, 1]
    assert set(results.read_front(tmp_path)["trial"]) == {0}


def test_no_rows_are_files_too(tmp_path: Path) -> None:
    write([], tmp_path)
    assert len(results.read_trials(tmp_path)) == len(results.read_front(tmp_path)) == 0


def test_different_conditions_are_never_ranked_together() -> None:
    with pytest.raises(AssertionError, match="different dtype"):
        results.ranked([make_row(0), make_row(1, dtype="bfloat16")], OBJECTIVES)


@pytest.mark.parametrize("names", [(), ("proxy_score", "proxy_score"), ("proxy_score", "accuracy")])
def test_objectives_are_checked(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"--objectives: .*proxy_score, throughput_img_s, params"):
        results.check_objectives(names)


@pytest.mark.parametrize(
    "values", [{"proxy_scor": 1.0}, {"macs": 1}, {"proxy_score": "high"}, {"peak_memory_bytes": 1.5}, {"trial": 0}]
)
def test_an_evaluation_cannot_write_what_the_file_cannot_hold(values: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        results.check_measured("proxy", values)


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trials\.parquet: there is no such file; give .* again"):
        results.read_trials(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json: there is no such file"):
        results.read_manifest(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        results.latest_run(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "overwritten", "folder"])
def test_damaged_parquet_is_one_sentence(tmp_path: Path, damage: str) -> None:
    write(random_rows(50), tmp_path)
    path = tmp_path / "trials.parquet"
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        middle = len(whole) // 2
        overwritten = b"\x00" * (len(whole) - 200) + whole[-200:]
        path.write_bytes(
            {"empty": b"", "text": b"hello", "truncated": whole[:middle], "overwritten": overwritten}[damage]
        )
    with pytest.raises(UserError, match=r"trials\.parquet: .*give the run's `archsearch run` command again") as caught:
        results.read_trials(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_tools_parquet_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"trial": [1]}).to_parquet(tmp_path / "trials.parquet")
    with pytest.raises(UserError, match="lacks the column 'arch_id'"):
        results.read_trials(tmp_path)


def test_a_file_of_an_earlier_version_is_read_with_its_later_columns_empty(tmp_path: Path) -> None:
    rows = write(random_rows(3), tmp_path)
    path = tmp_path / "trials.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["activations"]), path)
    assert results.read_trials(tmp_path).activations.isna().all()
    assert [row["activations"] for row in results.read_rows(tmp_path)] == [None] * len(rows)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 99}', "\x00"])
def test_damaged_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not a"):
        results.read_manifest(tmp_path)


def test_manifest_comes_back_and_the_latest_run_is_found(tmp_path: Path) -> None:
    for age, name in enumerate(["b", "a", "c"]):
        (tmp_path / name).mkdir()
        results.write_manifest({"name": name}, tmp_path / name)
        os.utime(tmp_path / name / "manifest.json", (1000 - age, 1000 - age))
    assert results.latest_run(tmp_path) == tmp_path / "b"
    assert results.read_manifest(tmp_path / "c") == {"format_version": 1, "name": "c"}
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["name"] == "a"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    before = write(random_rows(5), tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with pytest.raises(
            UserError, match=r"trials\.parquet: cannot be written \(.*everything measured so far is kept"
        ):
            results.write_trials(random_rows(500), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(results.read_trials(tmp_path)) == len(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.parquet", "trials.parquet"]


def test_a_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    write(random_rows(1), tmp_path)
    stop, lengths = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            lengths.append(len(results.read_trials(tmp_path)))

    reader = threading.Thread(target=read)
    reader.start()
    rows = random_rows(200)
    for count in range(1, 200, 5):
        write(rows[:count], tmp_path)
    stop.set()
    reader.join()
    assert lengths == sorted(lengths)
    assert len(lengths) > 5
