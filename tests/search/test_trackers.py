"""Trackers of a run, each read back by its own library: every ended trial once, whatever the run went through, and no harm to it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.runs import FIXED, ROOT, InProcessWorker, RecordingListener, fixed_archs, make_config, make_rung_config
from support.stub_evaluators import evaluate

from archsearch import results
from archsearch.errors import UserError
from archsearch.results import Row
from archsearch.search import Driver, RunConfig, open_run
from archsearch.search.trackers.base import About, figures
from archsearch.search.trackers.tracking import TRACKERS, check_trackers, tracking

FIGURES = ("proxy_score", "throughput_img_s", "params", "macs", "rung_score", "seconds_total")


def tracked(
    folder: Path, config: RunConfig, trials: int, *names: str, say: Callable[[str], None] = print
) -> RecordingListener:
    """A run or its continuation with these trackers."""
    display = RecordingListener()
    with open_run(folder, config) as store, tracking(names, store, display, ["archsearch", "run"], say) as listener:
        Driver(config, store, InProcessWorker(evaluate), listener, fixed=fixed_archs()).run(trials)
    return display


def read_tensorboard(folder: Path, figure: str) -> dict[int, list[float]]:
    """Trial -> values of a figure."""
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "tensorboard"), size_guidance={module.SCALARS: 0})
    events.Reload()
    found: dict[int, list[float]] = {}
    for event in events.Scalars(figure) if figure in events.Tags()["scalars"] else ():
        found.setdefault(event.step, []).append(event.value)
    return found


def read_mlflow(folder: Path, figure: str) -> dict[int, list[float]]:
    """Trial -> values of a figure, of the only run there is."""
    client = import_module("mlflow").MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("archsearch").experiment_id])
    found: dict[int, list[float]] = {}
    for metric in client.get_metric_history(run.info.run_id, figure):
        found.setdefault(metric.step, []).append(metric.value)
    return found


def read_wandb(folder: Path, figure: str) -> dict[int, list[float]]:
    """Trial -> values of a figure, of all parts of the run in order; a later value of a step takes the place of an earlier one."""
    protocol = import_module("wandb.proto.wandb_internal_pb2")
    steps: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = protocol.Record.FromString(data)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if items:
                steps[record.history.step.num] = items
    found: dict[int, list[float]] = {}
    for items in steps.values():
        if figure in items:
            found.setdefault(items["trial"], []).append(items[figure])
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb: LevelDB's log format, whose blocks are of 32 KiB, behind a header of seven bytes."""
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block, too short for a header
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}
LIBRARIES = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(find_spec(name) is None, reason=f"needs the package {name}"),
            *([pytest.mark.slow] if name != "tensorboard" else []),
            *(
                [pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")]
                if name == "mlflow"
                else []
            ),
        ],
    )
    for name in TRACKERS
]


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A home of the test's own, in which nothing may be written, no settings of a tracker but these, and the hosts that are asked for."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    hosts, resolve = list[str](), socket.getaddrinfo

    def noted(host: Any, *arguments: Any, **options: Any) -> Any:
        hosts.append(str(host))
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(home)
    return hosts


def assert_tracked(folder: Path, tracker: str) -> None:
    """Every figure of every ended trial is there once, and as trials.parquet has it."""
    rows = results.read_rows(folder)
    for figure in FIGURES:
        wanted = {row["trial"]: [row[figure]] for row in rows if row[figure] is not None}
        found = READERS[tracker](folder, figure)
        assert found.keys() == wanted.keys(), figure
        for trial, values in wanted.items():
            assert found[trial] == pytest.approx(values, rel=1e-6), (figure, trial)  # TensorBoard has float32


@pytest.mark.parametrize("tracker", LIBRARIES)
def test_every_ended_trial_is_tracked_once_also_when_the_run_goes_on(
    tmp_path: Path, tracker: str, asked: list[str]
) -> None:
    folder, config = tmp_path / "run", make_rung_config(tmp_path / "log", name="made")
    tracked(folder, config, 2, tracker)
    assert_tracked(folder, tracker)
    tracked(folder, config, 4)  # not tracked
    before = results.read_rows(folder)
    tracked(folder, config, 7, tracker)
    assert_tracked(folder, tracker)
    tracked(folder, config, 7, tracker)
    assert_tracked(folder, tracker)
    rows = results.read_rows(folder)
    names = [name for name in rows[0] if name != "front"]
    assert [[row[name] for name in names] for row in rows[: len(before)]] == [
        [row[name] for name in names] for row in before
    ]
    assert list((tmp_path / "home").iterdir()) == [], "nothing outside the run's folder"
    assert set(asked) <= {"localhost", "127.0.0.1"}, "nothing over the network"


@pytest.mark.parametrize("tracker", LIBRARIES)
def test_a_renamed_run_goes_on_with_the_same_run_of_its_tracker(tmp_path: Path, tracker: str) -> None:
    config = make_rung_config(tmp_path / "log", name="made")
    tracked(tmp_path / "made", config, 2, tracker)
    folder = results.rename_run(tmp_path / "made", "other")
    tracked(folder, replace(config, name="other"), 4, tracker)
    assert_tracked(folder, tracker)


_KILLED = """
import os, sys
from pathlib import Path
from support.runs import RecordingListener, make_rung_config
from test_trackers import tracked

def end(self, row, tally):
    if tally.ended == 4:
        os.killpg(0, 9)

folder, tracker = Path(sys.argv[1]), sys.argv[2]
RecordingListener.trial_finished = end
tracked(folder / "run", make_rung_config(folder / "log", name="made"), 7, tracker)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", LIBRARIES)
def test_every_ended_trial_is_tracked_once_after_a_kill(tmp_path: Path, tracker: str) -> None:
    """Of the driver and of all processes that it began, which the library's are among."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "search")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _KILLED, str(tmp_path), tracker]
    killed = subprocess.run(command, env=environment, start_new_session=True, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tracked(tmp_path / "run", make_rung_config(tmp_path / "log", name="made"), 7, tracker)
    assert_tracked(tmp_path / "run", tracker)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_a_part_that_was_sent_to_wandb_is_not_written_again(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_rung_config(tmp_path / "log", name="made")
    tracked(folder, config, 2, "wandb")
    (first,) = folder.glob("wandb/offline-run-*")
    (first / "run.wandb.synced").touch()
    tracked(folder, config, 4, "wandb")
    assert first.exists()
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    assert_tracked(folder, "wandb")


@pytest.mark.slow
@pytest.mark.parametrize("is_absolute", [False, True], ids=["of this version", "of an earlier version"])
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_what_was_sent_to_wandb_is_known_in_a_renamed_run(tmp_path: Path, is_absolute: bool) -> None:
    config = make_rung_config(tmp_path / "log", name="made")
    tracked(tmp_path / "made", config, 2, "wandb")
    (first,) = (tmp_path / "made").glob("wandb/offline-run-*")
    (first / "run.wandb.synced").touch()
    noted = first.parent / "archsearch-trials.json"
    ((part, trials),) = json.loads(noted.read_text()).items()
    assert part == f"wandb/{first.name}"
    if is_absolute:
        noted.write_text(json.dumps({str(first): trials}))
    folder = results.rename_run(tmp_path / "made", "other")
    tracked(folder, replace(config, name="other"), 4, "wandb")
    assert_tracked(folder, "wandb")
    own = json.loads((folder / "wandb" / noted.name).read_text())
    assert own.pop(part) == trials
    assert not any(set(trials) & set(others) for others in own.values())
    # wandb puts -1 behind the name of a second part that begins in the same second.
    parts = [path.name for path in folder.glob("wandb/offline-run-*")]
    ids = re.findall(r"^offline-run-.*-made-([0-9a-f]+)", "\n".join(parts), re.MULTILINE)
    assert len(parts) == len(ids) == 2
    assert len(set(ids)) == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the package mlflow")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
def test_mlflow_has_settings_and_front_and_takes_the_users_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    folder, config = tmp_path / "run", make_config(tmp_path / "log", name="made")
    tracked(folder, config, 2, "mlflow")
    assert not (folder / "mlflow.db").exists()
    client = import_module("mlflow").MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mine.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_name, run.info.status) == ("made", "FINISHED")
    assert run.data.params["space"] == "hybrid"
    assert run.data.params["budget"] == "4.50G MACs +-5%"
    lines = run.data.tags["mlflow.note.content"].splitlines()
    front = [row for row in results.read_rows(folder) if row["front"] == 0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [str(row["trial"]) for row in front]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the package tensorboard")
def test_tensorboard_has_settings_and_front(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log", name="made")
    tracked(folder, config, 2, "tensorboard")
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "- space: hybrid" in texts["settings/text_summary"]
    assert "| trial | proxy_score | throughput_img_s | params |" in texts["front/text_summary"]
    assert texts["state/text_summary"] == "complete"


class Broken:
    """A tracker whose `method` fails."""

    def __init__(self, method: str) -> None:
        self.method, self.calls = method, list[str]()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            raise RuntimeError("the server is gone\nand more")

    def start(self, about: About) -> tuple[int, ...]:
        self._call("start")
        return ()

    def log(self, row: Row, front_size: int | None) -> None:
        self._call("log")

    def finish(self, state: str, front: Sequence[Row]) -> None:
        self._call("finish")


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_changes_nothing_and_is_named_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = make_config(tmp_path / "log", name="made"), list[str]()
    plain = tracked(tmp_path / "plain" / "made", config, 3)
    broken = Broken(method)
    monkeypatch.setitem(TRACKERS, "json", lambda library: broken)  # a library that is always there
    with_it = tracked(tmp_path / "with" / "made", config, 3, "json", say=said.append)
    (sentence,) = said
    assert "--track json: failed (RuntimeError: the server is gone) and hears no more" in sentence
    assert broken.calls == [
        "start",
        *["log"] * (5 if method == "finish" else method == "log"),
        *["finish"] * (method == "finish"),
    ]
    assert with_it.state == plain.state == "complete"
    assert [row["arch_id"] for row in with_it.finished_rows] == [row["arch_id"] for row in plain.finished_rows]
    assert [event["event"] for event in with_it.events] == [event["event"] for event in plain.events]


def test_a_tracker_hears_every_trial_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Broken("none")
    monkeypatch.setitem(TRACKERS, "json", lambda library: whole)
    tracked(tmp_path / "made", make_config(tmp_path / "log", name="made"), 3, "json")
    assert whole.calls == ["start", *["log"] * (3 + len(FIXED)), "finish"]


def test_without_a_tracker_the_study_has_nothing_of_it(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", name="made")
    tracked(tmp_path / "made", config, 1)
    with open_run(tmp_path / "made", config) as store:
        attrs = store._backend.read_study_attrs(store._study._study_id)
        assert "archsearch:track_id" not in attrs
        first = store.track_id()
    with open_run(tmp_path / "made", config) as store:
        assert store.track_id() == first


def test_unknown_and_missing_trackers_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown tracker 'tensorbord', did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setitem(TRACKERS, "no_such_library", TRACKERS["wandb"])
    with pytest.raises(UserError, match=r"pip install 'archsearch\[no_such_library\]'"):
        check_trackers(["no_such_library"])
    monkeypatch.chdir("/")
    check_trackers([])


def test_figures_are_those_that_a_trial_has() -> None:
    row: Mapping[str, Any] = {"params": 3, "macs": None, "proxy_score": 0.5, "trial": 7, "architecture": "lka 64x2"}
    assert figures(dict(row), 4) == {"params": 3.0, "proxy_score": 0.5, "front_size": 4.0}
    assert "front_size" not in figures(dict(row), None)
