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
