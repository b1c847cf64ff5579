"""A run on a real Ray cluster of several nodes on this machine: nodes die and join, are refused by version, and fetch the images."""

import importlib.util
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import ROOT, RecordingListener, make_config, run
from support.stub_evaluators import noted

from archsearch import results
from archsearch.errors import UserError
from archsearch.search import RayWorkers
from archsearch.search.engine.workers.ray import connect

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: archsearch[ray]")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without cores; tests add nodes."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


def stub(cluster: Any, evaluator: str = "evaluate", **options: Any) -> RayWorkers:
    return RayWorkers(cluster.address, evaluator=f"support.stub_evaluators:{evaluator}", **options)


def check_nothing_lost_or_doubled(folder: Path, log: Path, deaths: int) -> None:
    rows = results.read_rows(folder)
    assert [row["state"] for row in rows] == ["complete"] * len(rows)
    ends = Counter((words[1], words[2]) for words in noted(log) if words[0] == "end")
    starts = Counter((words[1], words[2]) for words in noted(log) if words[0] == "start")
    assert ends.keys() == {(row["arch_id"], phase) for row in rows for phase in ("count", "throughput", "proxy")}
    assert set(ends.values()) == {1}, "a phase that ended was measured again"
    assert sum(starts.values()) - sum(ends.values()) <= deaths, "only unfinished phases are begun again"


@needs_ray
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")  # Ray's processes and sockets
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nodes_that_die_and_join_during_a_run(cluster: Any, tmp_path: Path) -> None:
    lost = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    log, said = tmp_path / "log", list[str]()
    workers = stub(cluster, "on_node", say=said.append)
    changed = threading.Event()

    def change() -> None:
        cluster.add_node(num_cpus=1, env_vars={"NODE_MARK": "joined"})
        cluster.remove_node(lost, allow_graceful=False)
        changed.set()

    class Changing(RecordingListener):
        def trial_finished(self, row: Any, tally: Any) -> None:
            super().trial_finished(row, tally)
            if row["trial"] == 1:
                threading.Thread(target=change).start()

    config = make_config(log, settings={"phase_s": 0.3})
    run(tmp_path / "run", config, 22, worker=workers, listener=Changing())
    assert changed.is_set()
    check_nothing_lost_or_doubled(tmp_path / "run", log, deaths=1)
    assert "joined" in {words[2] for words in noted(log) if words[0] == "node"}
    assert any("has left the cluster" in line for line in said)


@needs_ray
def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: nothing answers at"):
        connect("127.0.0.1:1", "cpu")
    with pytest.raises(UserError, match="write auto, or HOST:PORT"):
        connect("somewhere", "cpu")
    with pytest.raises(UserError, match="Ray Client"):
        connect("ray://127.0.0.1:10001", "cpu")
