"""What other processes use of the cores: a process that computes is seen, our own are not, with and without the system's counters."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archsearch import cores
from archsearch.cores import OthersLoad, is_busy

BURN = "import sys\nprint('on', flush=True)\nwhile True: pass"


@pytest.fixture
def burner() -> "Iterator[subprocess.Popen[str]]":
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs the counters of Linux")
def test_the_same_process_counts_as_anothers_and_not_as_our_own(burner: "subprocess.Popen[str]") -> None:
    with_it, without = OthersLoad(), OthersLoad()
    with_it.mean_cores()
    without.mean_cores([burner.pid])
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:  # we compute too, which is not another's work
        pass
    used = cores._process_s(burner.pid)
    assert used is not None
    others, less = with_it.mean_cores(), without.mean_cores([burner.pid])
    assert others is not None
    assert less is not None
    # The difference is what the process used, whatever else runs on this machine.
    assert others >= 0.2
    assert others - less == pytest.approx(used, abs=0.35)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs the counters of Linux")
def test_the_cores_that_are_looked_at_stay_the_same_while_this_process_is_bound_to_some(
    burner: "subprocess.Popen[str]",
) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    ours, theirs = sorted(allowed)[:2]
    os.sched_setaffinity(burner.pid, {theirs})
    with_it, without = OthersLoad(), OthersLoad()
    with_it.total_s()
    without.total_s([burner.pid])
    before = cores._process_s(burner.pid)
    os.sched_setaffinity(0, {ours})
    try:
        time.sleep(0.7)
        bound = with_it.total_s(), without.total_s([burner.pid])
        while_bound = cores._process_s(burner.pid)
    finally:
        os.sched_setaffinity(0, allowed)
    time.sleep(0.3)
    free = with_it.total_s(), without.total_s([burner.pid])
    used = cores._process_s(burner.pid)
    assert before is not None
    assert while_bound is not None
    assert used is not None
    for (others, less), seconds in ((bound, while_bound - before), (free, used - before)):
        assert others is not None
        assert less is not None
        assert others - less == pytest.approx(seconds, abs=0.35)


def test_without_counters_the_load_average_less_our_threads_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "_PROC", tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 1.0, 1.0))
    others = OthersLoad()
    assert others.mean_cores(own_threads=2) is None
    time.sleep(0.05)
    assert others.mean_cores(own_threads=2) == pytest.approx(1.0, rel=0.1)
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")  # as some containers show it
    time.sleep(0.05)
    assert others.mean_cores(own_threads=2) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("others", "cores", "threads", "busy"),
    [(0.1, 2, 2, False), (0.4, 2, 2, True), (1.1, 2, 1, False), (1.6, 2, 1, True)],
)
def test_busy_is_more_than_the_idle_cores(others: float, cores: int, threads: int, busy: bool) -> None:
    assert is_busy(others, cores, threads) == busy
