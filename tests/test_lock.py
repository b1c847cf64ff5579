"""Locks of the machine: one place whatever TMPDIR and the umask say, and who holds one is told to those that wait."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.runs import ROOT, wait_until

from archsearch.errors import UserError
from archsearch.lock import lock_directory, machine_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

HOLDER = """
import os, sys, time
from archsearch.lock import machine_lock, work_for
if len(sys.argv) > 3:  # late: the other user may not read the libraries
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
os.umask(0o077)
work_for("run " + sys.argv[1])
with machine_lock("test", exclusive=sys.argv[2] == "alone"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCHSEARCH_LOCK_DIR", str(tmp_path))
    return tmp_path


@contextmanager
def holder(name: str, kind: str = "alone", *words: str) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the lock."""
    arguments = [sys.executable, "-c", HOLDER, name, kind, *words]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


class Waiter(threading.Thread):
    """Waits for the lock and notes what it is told."""

    def __init__(self, *, exclusive: bool = True) -> None:
        super().__init__(daemon=True)
        self.told: list[str] = []
        self.waited_s: float | None = None
        self.exclusive = exclusive
        self.start()

    def run(self) -> None:
        with machine_lock("test", exclusive=self.exclusive, on_wait=self.told.append) as held:
            self.waited_s = held.waited_s


@pytest.mark.usefixtures("directory")
def test_one_that_waits_is_told_who_holds_the_lock_and_how_long_it_waited() -> None:
    with holder("results/one") as process:
        waiter = Waiter()
        wait_until(lambda: waiter.told)
        assert f"process {process.pid} (run results/one, user " in waiter.told[0]
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        waiter.join(10)
    assert waiter.waited_s is not None
    assert 0.3 < waiter.waited_s < 10
    assert waiter.told[-1] == ""


@pytest.mark.usefixtures("directory")
def test_those_that_share_it_are_all_named_and_the_dead_are_not() -> None:
    with holder("results/one", "shared") as one, holder("results/two", "shared"), holder("results/three", "shared"):
        with machine_lock("test", exclusive=False) as held:
            assert held.waited_s == 0.0
        one.kill()
        one.wait()
        waiter = Waiter()
        wait_until(lambda: waiter.told)
        assert "results/two" in waiter.told[0]
        assert "results/three" in waiter.told[0]
        assert "results/one" not in waiter.told[0]
    waiter.join(10)


@pytest.mark.usefixtures("directory")
def test_a_lock_that_is_free_is_not_waited_for(directory: Path) -> None:
    told: list[str] = []
    for _ in range(3):
        with machine_lock("test", exclusive=True, on_wait=told.append) as held:
            assert held.waited_s == 0.0
    assert told == []
    assert (directory / "archsearch-test.lock").stat().st_size < 1000


def test_everyone_may_write_the_file_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with machine_lock("test", exclusive=True):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "archsearch-test.lock").stat().st_mode) == 0o666


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can become another user")
def test_another_users_lock_in_a_sticky_directory_is_waited_for_and_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path("/tmp") / f"archsearch-lock-test-{os.getpid()}"
    directory.mkdir()
    try:
        directory.chmod(0o1777)
        monkeypatch.setenv("ARCHSEARCH_LOCK_DIR", str(directory))
        with holder("results/theirs", "alone", "65534") as process:
            waiter = Waiter()
            wait_until(lambda: waiter.told)
            assert f"process {process.pid} (run results/theirs" in waiter.told[0]
            process.kill()
            waiter.join(10)
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def test_the_place_is_one_for_all_whatever_their_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHSEARCH_LOCK_DIR")
    monkeypatch.setenv("TMPDIR", "/somewhere/else")
    assert lock_directory() == Path("/tmp")


def test_a_file_with_a_second_name_is_locked_but_not_written(directory: Path) -> None:
    victim = directory / "victim"
    victim.write_text("precious")
    os.link(victim, directory / "archsearch-test.lock")
    with machine_lock("test", exclusive=True):
        pass
    assert victim.read_text() == "precious"


def test_a_pipe_or_a_file_without_rights_is_one_sentence(directory: Path) -> None:
    os.mkfifo(directory / "archsearch-test.lock")
    with pytest.raises(UserError, match="ARCHSEARCH_LOCK_DIR"), machine_lock("test", exclusive=True):
        pass


def test_what_others_wrote_into_the_file_is_no_harm(directory: Path) -> None:
    junk = 'x\n[]\n{"key": 1}\n{"key": "a", "pid": "b", "where": "c", "user": "\\u001b[31m"}\n' + "y" * 100_000
    (directory / "archsearch-test.lock").write_text(junk)
    with holder("results/one", "shared"):
        waiter = Waiter()
        wait_until(lambda: waiter.told)
        assert "\x1b" not in waiter.told[0]
    waiter.join(10)


@pytest.mark.usefixtures("directory")
def test_one_that_wants_it_alone_comes_between_two_steps_of_those_that_share_it() -> None:
    steps: list[float] = []
    aside: list[float] = []
    is_over = threading.Event()

    def share() -> None:
        with machine_lock("test", exclusive=False) as held:
            own: list[float] = []
            while not is_over.is_set():
                own.append(held.step_aside())
                steps.append(time.monotonic())
                time.sleep(0.005)
            assert held.waited_s == pytest.approx(sum(own))
            aside.extend(own)

    threads = [threading.Thread(target=share) for _ in range(3)]
    for thread in threads:
        thread.start()
    spans = []
    for _ in range(3):
        wait_until(lambda: len(steps) > 10)
        with machine_lock("test", exclusive=True):
            time.sleep(0.02)  # the last step of each has ended
            begin = time.monotonic()
            time.sleep(0.2)
            spans.append((begin, time.monotonic()))
        steps_before = len(steps)
        wait_until(lambda before=steps_before: len(steps) > before + 9)  # type: ignore[misc]  # bound now
    is_over.set()
    for thread in threads:
        thread.join(10)
    assert not [step for step in steps for begin, end in spans if begin < step < end]
    assert sum(seconds > 0.15 for seconds in aside) == 9
