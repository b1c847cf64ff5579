"""`kill -9` at random moments: nothing finished is lost, nothing is measured twice, the files can be read all the while."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from support.runs import fixed_archs, is_running, make_config, run, start, wait_until
from support.stub_evaluators import measure, noted, written

from archsearch import results
from archsearch.search import Job, open_run
from archsearch.search.engine.workers.base import Event

PHASE_S = 0.08
PHASES = ("count", "throughput", "proxy")


@contextmanager
def always_readable(folder: Path) -> Iterator[list[int]]:
    """Read the files of a run without a pause; gives the number of finished trials at each reading."""
    stop, finished, errors = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            if (folder / "manifest.json").exists():
                try:
                    finished.append(int((results.read_trials(folder)["state"] != "running").sum()))
                    results.read_front(folder)
                    results.read_manifest(folder)
                except Exception as error:  # fails the test below
                    errors.append(error)
            time.sleep(0.03)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield finished
    finally:
        stop.set()
        reader.join()
    assert errors == []


def stored(folder: Path, log: Path) -> tuple[set[tuple[str, str]], dict[int, str]]:
    """What the study knows: phases measured as (architecture as written, phase), and trials that ended with their state."""
    if not (folder / "study.db").exists():
        return set(), {}
    with open_run(folder, make_config(log, settings={"phase_s": PHASE_S})) as store:
        rows = store.rows()
        phases = {(written(row["arch"]), phase) for row in rows for phase in store.phases(row["trial"])}
        return phases, {row["trial"]: row["state"] for row in rows if row["state"] != "running"}


def has_more(log: Path, lines: int) -> bool:
    return len(noted(log)) > lines


def exists_or_ended(path: Path, driver: "subprocess.Popen[str]") -> bool:
    return path.exists() or driver.poll() is not None


def running_pids(log: Path) -> list[int]:
    return [pid for pid in set(worker_pids(log)) if is_running(pid)]


def worker_pids(log: Path) -> list[int]:
    return [int(words[3]) for words in noted(log) if words[0] == "start"]


def kill_at_random(folder: Path, log: Path, kills: list[str], seed: int, workers: int = 1) -> pd.DataFrame:
    """The trials of a run that is killed again and again, then left to end; checks on the way that nothing is lost or measured twice."""
    rng, trials = random.Random(seed), 3 * len(kills)
    with always_readable(folder) as finished:
        for victim in [*kills, None]:
            (known, ended), lines = stored(folder, log), len(noted(log))
            driver = start(folder, log, trials, PHASE_S, *([f"workers={workers}"] if workers > 1 else []))
            if victim is None:
                output, _ = driver.communicate(timeout=120)
                assert (driver.returncode, output) == (0, "complete\n")
            else:
                wait_until(partial(has_more, log, lines))
                time.sleep(rng.uniform(0, 10 * PHASE_S))
                kill(driver, victim, log, rng)
            again = {(words[1], words[2]) for words in noted(log)[lines:] if words[0] == "start"}
            assert not again & known, "a phase that was stored has been measured again"
            assert ended.items() <= stored(folder, log)[1].items(), "a trial that had ended is lost"
    assert finished == sorted(finished)
    frame = results.read_trials(folder)
    complete = frame[frame["state"] == "complete"]
    ends = Counter((words[1], words[2]) for words in noted(log) if words[0] == "end")
    assert all(ends[(written(arch), phase)] >= 1 for arch in complete["arch"] for phase in PHASES)
    # A killed driver takes a tenth of a second to exit, and only then do its workers: one ends a phase of 0.08 s meanwhile, or two; several,
    # which share the cores and of which suspects are alone, no more than one each.
    lost = sum(ends.values()) - len(ends)
    print(
        f"{len(kills)} kills, {workers} workers: {lost} of {sum(ends.values())} phases repeated, {len(finished)} readings"
    )
    assert lost <= max(2, workers) * len(kills), "a kill loses only the phases being measured"
    return frame


def assert_whole(frame: pd.DataFrame, kills: list[str]) -> None:
    """Every requested trial exists once, and none failed but by two kills without a phase between them."""
    assert frame["trial"].tolist() == list(range(3 * len(kills) + len(fixed_archs())))
    assert frame.loc[frame["state"] == "failed", "reason"].str.startswith("the run was killed").all()
    assert frame["arch_id"].is_unique


def kill(driver: "subprocess.Popen[str]", victim: str, log: Path, rng: random.Random) -> None:
    """Kill the driver and check that its worker exits; or kill the worker, let the driver continue a little, then kill both."""
    if victim == "worker":
        worker = worker_pids(log)[-1]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker_pids(log)[-1] != worker or driver.poll() is not None)
        time.sleep(rng.uniform(0, 4 * PHASE_S))
    driver.kill()
    driver.communicate(timeout=20)
    wait_until(lambda: not running_pids(log), seconds=5)


@pytest.mark.slow
def test_worker_and_driver_killed(tmp_path: Path) -> None:
    frame = kill_at_random(tmp_path / "run", tmp_path / "log", ["worker"], seed=0)
    assert len(frame) == 3 + len(fixed_archs())
    assert_whole(frame, ["worker"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ten_kills(tmp_path: Path, seed: int) -> None:
    kills = random.Random(seed).choices(["driver", "worker"], k=10)
    frame = kill_at_random(tmp_path / "run", tmp_path / "log", kills, seed)
    assert len(frame) == 30 + len(fixed_archs())
    assert_whole(frame, kills)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kills_with_four_workers(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> None:
    """Up to four trials are under way at each kill: none of them is lost. 100 kills of the driver in all with --whole, and some of workers."""
    is_whole = request.config.getoption("--whole")
    if seed and not is_whole:
        pytest.skip("a fortieth of it; --whole runs it")
    kills = ["driver"] * (10 if is_whole else 2) + ["worker"]
    random.Random(seed).shuffle(kills)
    frame = kill_at_random(tmp_path / "run", tmp_path / "log", kills, seed, workers=4)
    assert_whole(frame, kills)
    assert running_pids(tmp_path / "log") == []


@pytest.mark.slow
def test_of_four_trials_under_way_the_one_that_kills_the_driver_is_found(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    outputs: list[str] = []
    while outputs[-1:] != ["complete\n"] and len(outputs) < 5:
        driver = start(folder, log, 4, 0.0, "kill_driver", "workers=4")
        outputs.append(driver.communicate(timeout=60)[0])
    assert outputs == ["", "", "complete\n"]
    rows = results.read_rows(folder)
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["state"] for row in rows].count("complete") == len(rows) - 1 == 5
    assert [written(row["arch"]) for row in failed] == [noted(log)[0][1]]
    assert failed[0]["reason"] == "the run was killed 2 times while it was evaluated; it is not tried again"


class DyingWorkers:
    """Four workers, each a phase further at a time in turn, in a driver that ends like a killed one: at once, or where a trial comes to a phase."""

    capacity = 4

    def __init__(self, victim: int, phase: str, *, at_once: bool = False) -> None:
        self._dies_at, self._at_once = (victim, phase), at_once
        self._left = deque[tuple[Job, list[str]]]()

    def submit(self, job: Job) -> None:
        self._left.append((job, [phase for phase in PHASES if phase not in job.done]))

    def events(self, timeout: float) -> list[Event]:
        if not self._left:
            return []
        job, phases = self._left.popleft()
        if self._at_once or (phases and (job.trial, phases[0]) == self._dies_at):
            raise SystemExit  # neither an error nor Ctrl-C: the driver leaves all as it is
        if not phases:
            return [{"event": "done", "trial": job.trial}]
        self._left.append((job, phases[1:]))
        values = {**measure(phases[0], job.arch), "seconds": 0.0}
        return [{"event": "phase", "trial": job.trial, "phase": phases[0], "values": values}]

    def end(self, trial: int, reason: str) -> None:
        raise AssertionError("nothing is stuck here")

    def close(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", range(4))
def test_trials_beside_one_that_kills_the_driver_do_not_fail(
    request: pytest.FixtureRequest, tmp_path: Path, victim: int, phase: str
) -> None:
    """At whichever phase it does; first the driver is killed from outside, so that all four are suspects."""
    if (victim, phase) not in ((0, "throughput"), (3, "proxy")) and not request.config.getoption("--whole"):
        pytest.skip("--whole runs it")
    deaths = 0
    for start_number in range(8):
        workers = DyingWorkers(victim, phase, at_once=start_number == 0)
        try:
            run(tmp_path / "run", make_config(tmp_path / "log"), 4, worker=workers)
            break
        except SystemExit:
            deaths += 1
    rows = results.read_rows(tmp_path / "run")
    assert [row["trial"] for row in rows if row["state"] != "complete"] == [victim]
    assert rows[victim]["state"] == "failed"
    assert str(rows[victim]["reason"]).startswith("the run was killed ")
    assert len(rows) == 6
    assert 2 <= deaths <= 4


@pytest.mark.slow
def test_a_driver_killed_at_its_start_leaves_a_run_that_starts(tmp_path: Path) -> None:
    """While it imports, makes the database, opens it: at any of these moments."""
    folder, log = tmp_path / "run", tmp_path / "log"
    for name in ("run.lock", ".study.db.new", "study.db"):
        driver = start(folder, log, 1, 0.0)
        wait_until(partial(exists_or_ended, folder / name, driver))
        driver.kill()
        driver.communicate(timeout=20)
    driver = start(folder, log, 1, 0.0)
    output, _ = driver.communicate(timeout=60)
    assert (driver.returncode, output) == (0, "complete\n")
    assert len(results.read_trials(folder)) == 3
