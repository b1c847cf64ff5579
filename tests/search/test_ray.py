"""A run on a real Ray cluster of several nodes on this machine: nodes die and join, are refused by version, and fetch the images."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import ROOT, RecordingListener, make_config, run
from support.stub_evaluators import noted, written

from archsearch import results
from archsearch.errors import UserError
from archsearch.search import RayWorkers
from archsearch.search.engine.workers.ray import connect

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: archsearch[ray]")

# Ray leaves pipes of its processes to the garbage collector.
QUIET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head without cores; tests add nodes."""
    monkeypatch.chdir(tmp_path)  # Ray's processes import from the driver's folder first
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here


def stub(cluster: Any, evaluator: str = "evaluate", **options: Any) -> RayWorkers:
    return RayWorkers(cluster.address, evaluator=f"support.stub_evaluators:{evaluator}", **options)


def check_nothing_lost_or_doubled(folder: Path, log: Path, deaths: int) -> None:
    rows = results.read_rows(folder)
    assert [row["state"] for row in rows] == ["complete"] * len(rows)
    ends = Counter((words[1], words[2]) for words in noted(log) if words[0] == "end")
    starts = Counter((words[1], words[2]) for words in noted(log) if words[0] == "start")
    assert ends.keys() == {(written(row["arch"]), phase) for row in rows for phase in ("count", "throughput", "proxy")}
    assert set(ends.values()) == {1}, "a phase that ended was measured again"
    assert sum(starts.values()) - sum(ends.values()) <= deaths, "only unfinished phases are begun again"


@needs_ray
@QUIET
def test_nodes_that_die_and_join_during_a_run(cluster: Any, tmp_path: Path) -> None:
    lost = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    log, said = tmp_path / "log", list[str]()
    workers = stub(cluster, "on_node", say=said.append)

    class Changing(RecordingListener):
        def trial_finished(self, row: Any, tally: Any) -> None:
            super().trial_finished(row, tally)
            if len(self.finished_rows) == 3:
                cluster.remove_node(lost, allow_graceful=False)
                cluster.add_node(num_cpus=1, env_vars={"NODE_MARK": "joined"})

    config = make_config(log, settings={"phase_s": 0.3})
    run(tmp_path / "run", config, 22, worker=workers, listener=Changing())
    check_nothing_lost_or_doubled(tmp_path / "run", log, deaths=1)
    assert "joined" in {words[2] for words in noted(log) if words[0] == "node"}
    assert any("has left the cluster" in line for line in said)


@needs_ray
@QUIET
def test_a_node_of_another_version_is_refused_by_name(cluster: Any, tmp_path: Path) -> None:
    """Alone it ends the command; beside a good one it is left out."""
    other = tmp_path / "other" / "archsearch"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / "version.py").write_text('__version__ = "0.0.1"')
    cluster.add_node(num_cpus=1, node_name="old", env_vars={"PYTHONPATH": str(other.parent)})
    with pytest.raises(
        UserError, match=r"--ray: no node can work on this run: node old: it has archsearch 0\.0\.1, this run is by"
    ):
        stub(cluster)
    with pytest.raises(UserError, match=r"--device: got 'cuda', but no node of the Ray cluster at .* has a GPU"):
        stub(cluster, device="cuda")
    cluster.add_node(num_cpus=1)
    with pytest.raises(UserError, match="--device-class: got 'A100', the cluster's workers have: "):
        stub(cluster, device_class="A100")
    workers = stub(cluster)
    assert workers.capacity == 1
    workers.close()


@needs_ray
def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: nothing answers at"):
        connect("127.0.0.1:1", "cpu")
    with pytest.raises(UserError, match="write auto, or HOST:PORT"):
        connect("somewhere", "cpu")
    with pytest.raises(UserError, match="Ray Client"):
        connect("ray://127.0.0.1:10001", "cpu")
