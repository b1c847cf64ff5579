"""A run on a real Ray cluster of several nodes on this machine: nodes die and join, are refused by version, and fetch the images."""

import importlib.util
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.image_forms import make_pictures, write_folder
from support.postgres import Restarts, drive, postgres_server
from support.runs import ROOT, RecordingListener, make_config, run, wait_until
from support.stub_evaluators import noted, written

from archsearch import results
from archsearch.data import Policy, Preparation, open_source
from archsearch.data.preparation import prepare
from archsearch.data.prepared import check_prepared, fingerprint, read_manifest
from archsearch.errors import UserError
from archsearch.search import RayWorkers
from archsearch.search.engine.workers.ray_connection import connect

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: archsearch[ray]")

# Ray leaves pipes of its processes to the garbage collector.
QUIET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head without cores; tests add nodes."""
    monkeypatch.chdir(tmp_path)  # Ray's processes import from the driver's folder first
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The path of a socket has at most 107 bytes, and a worker's TMPDIR is long.
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", short)
    from ray.cluster_utils import Cluster

    # A node that died is noticed after a second, not after a quarter of a minute.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": health}
    )
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here
    shutil.rmtree(short, ignore_errors=True)


def only_whole(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("takes most of a minute: --whole runs it")


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
    log = tmp_path / "log"
    workers = stub(cluster, "on_node")

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


class Killing(RecordingListener):
    """Kills one of two nodes a while after the trial `at` has ended, and adds another."""

    def __init__(self, cluster: Any, nodes: list[Any], rng: random.Random) -> None:
        super().__init__()
        self.cluster, self.nodes, self.rng = cluster, nodes, rng
        self.at, self.delay_s = rng.randrange(1, 26), rng.uniform(0, 0.4)

    def trial_finished(self, row: Any, tally: Any) -> None:
        super().trial_finished(row, tally)
        if len(self.finished_rows) == self.at:
            time.sleep(self.delay_s)
            self.cluster.remove_node(self.nodes.pop(self.rng.randrange(2)), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1))


@needs_ray
@QUIET
def test_a_node_killed_at_random_moments(cluster: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("ten runs of 30 trials; --whole runs them")
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    for seed in range(10):
        log, folder = tmp_path / f"log{seed}", tmp_path / f"run{seed}"
        killing = Killing(cluster, nodes, random.Random(seed))
        run(folder, make_config(log, settings={"phase_s": 0.1}), 28, worker=stub(cluster), listener=killing)
        check_nothing_lost_or_doubled(folder, log, deaths=1)
        assert len(results.read_rows(folder)) == 30


@needs_ray
@QUIET
def test_a_node_is_killed_while_the_database_restarts(
    cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    only_whole(request)
    log, folder, rng = tmp_path / "log", tmp_path / "run", random.Random(0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    with postgres_server() as server:
        restarts = Restarts(server, log, 5, rng)
        config, killing = make_config(log, settings={"phase_s": 0.1}), Killing(cluster, nodes, rng)
        assert drive(folder, config, server.url, 28, [], restarts, stub(cluster), killing) == "complete"
    assert restarts.were_in_time == [True] * 5
    assert len(killing.finished_rows) == 30
    check_nothing_lost_or_doubled(folder, log, deaths=1)


@needs_ray
@QUIET
def test_prepared_images_are_fetched_where_they_are_missing_and_refused_where_they_differ(
    cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nodes that find another state of the folder, since they join later."""
    only_whole(request)
    for name, number in (("ours", 2), ("theirs", 3)):
        write_folder(tmp_path / f"{name}-set", make_pictures(number, broken=False))
        task = Preparation(source=open_source(str(tmp_path / f"{name}-set")), policy=Policy(), size=8)
        prepare(task, tmp_path / name)
    folder, digits, said = tmp_path / "ours", fingerprint(read_manifest(tmp_path / "ours")), list[str]()
    first = cluster.add_node(num_cpus=1, node_name="first")
    workers = stub(cluster, folder=str(folder), say=said.append)

    def until(is_so: Callable[[], bool]) -> None:
        wait_until(lambda: workers.events(0.1) == [] and is_so(), seconds=60)

    folder.rename(tmp_path / "away")
    cluster.add_node(num_cpus=1, node_name="second", env_vars={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    until(lambda: workers.capacity == 2)
    fetched = check_prepared(tmp_path / "cache" / "archsearch" / "ray" / digits)
    assert fingerprint(read_manifest(fetched.folder)) == digits
    (tmp_path / "theirs").rename(folder)
    cluster.add_node(num_cpus=1, node_name="third")
    until(lambda: len(said) == 1)
    assert said.pop().startswith(f"left out node third: {folder} holds other images there (")
    cluster.remove_node(first, allow_graceful=False)
    until(lambda: said == ["node first has left the cluster"])
    assert workers.capacity == 1
    workers.close()


@needs_ray
@QUIET
def test_a_node_of_another_version_is_refused_by_name(
    cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Alone it ends the command; beside a good one it is left out."""
    only_whole(request)
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
