"""The time left of a run on several workers, and which phases are taken for stuck, on a clock of the test's own."""

import random
from collections import deque
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
from support.clock import Clock, standing_clock
from support.runs import make_rung_config

from archsearch.search import Tally, TimeLeft
from archsearch.search.engine.stalls import Stalls

TRIALS, TICK_S = 200, 0.5
STEPS = {"proxy@25": (0, 25), "proxy@100": (25, 100), "proxy": (100, 400)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return standing_clock(monkeypatch)


class Playing:
    """Plays sampled trials to a `TimeLeft`, as many at once as there are workers; each phase has a drawn duration, half of the trials stop early."""

    def __init__(self, clock: Clock, left: TimeLeft, workers: int, seed: int) -> None:
        self.clock, self.left, self.workers, self.rng = clock, left, workers, random.Random(seed)
        self.ended = 0

    @property
    def tally(self) -> Tally:
        return Tally(ended=self.ended, failed=0, total=TRIALS, front_size=4, workers=self.workers)

    def trial(self, trial: int) -> Iterator[None]:
        """Each step of it takes one tick of the clock."""
        row = {"trial": trial, "is_fixed": False, "reused_from": None, "state": "complete"}
        self.left.trial_started(row)
        step_s = 0.2 * self.rng.uniform(0.7, 1.3)
        for name in ["count", "throughput", *list(STEPS)[: self.rng.choice([2, 3])]]:
            begin, end = STEPS.get(name, (0, 0))
            seconds = (
                (end - begin) * step_s if end else {"count": 1.0, "throughput": 7.0}[name] * self.rng.uniform(0.7, 1.3)
            )
            yield from self.phase(trial, name, seconds)
        self.left.trial_finished(row)
        self.ended += 1

    def phase(self, trial: int, name: str, seconds: float) -> Iterator[None]:
        begin, end = STEPS.get(name, (0, 0))
        event = {"event": "progress", "trial": trial, "phase": name}
        self.left.progress(event)
        ticks = max(1, round(seconds / TICK_S))
        for tick in range(1, ticks + 1):
            yield
            if end:
                self.left.progress({**event, "step": begin + round((end - begin) * tick / ticks), "steps": 400})
        self.left.progress({**event, "event": "phase", "values": {"seconds": ticks * TICK_S}})

    def play(self) -> tuple[float, list[tuple[float, float | None]]]:
        """The seconds that all took, and what was said to be left after each tick."""
        began, said, waiting = self.clock.now, [], deque(range(TRIALS))
        running: list[Iterator[None]] = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                running.append(self.trial(waiting.popleft()))
            running = [each for each in running if next(each, True) is None]
            self.clock.now += TICK_S
            said.append((self.clock.now - began, self.left.left_s(self.tally)))
        return self.clock.now - began, said


@pytest.mark.parametrize(("workers", "band"), [(1, 0.1), (2, 0.1), (8, 0.15), (64, 0.35)])
def test_the_estimate_is_near_the_truth_on_any_number_of_workers(
    tmp_path: Path, clock: Clock, workers: int, band: float
) -> None:
    """The band is wider where a worker has but three trials, so that chance decides how long the last ones take."""
    left = TimeLeft(make_rung_config(tmp_path / "log", settings={"device": "cuda"}, papers=()))
    end, said = Playing(clock, left, workers, 3).play()
    for share in (0.25, 0.5, 0.75):
        at, estimate = said[int(share * len(said))]
        assert estimate is not None
        assert abs(estimate - (end - at)) <= band * (end - at) + 5.0, (share, estimate, end - at)


def test_workers_that_come_and_go_change_the_estimate(tmp_path: Path, clock: Clock) -> None:
    curve = '[{"seconds": 5.0}, {"seconds": 15.0}, {"seconds": 60.0}]'
    row = {"trial": 0, "is_fixed": True, "state": "complete", "reused_from": None, "learning_curve": curve}
    row |= {"seconds_count": 1.0, "seconds_throughput": 7.0}
    config = make_rung_config(tmp_path / "log", settings={"device": "cuda"})
    left = TimeLeft(config, [row] * 2)

    def said(workers: int, total: int = 10) -> float | None:
        return left.left_s(Tally(ended=2, failed=0, total=total, front_size=1, workers=workers))

    one = said(1)
    assert one is not None
    assert [said(2), said(8), said(64), said(0)] == pytest.approx([one / 2, one / 8, one / 8, None])
    assert said(3) == pytest.approx(3 * one / 8), "eight trials on three workers take three rounds"
    on_cpu = TimeLeft(make_rung_config(tmp_path / "log"), [row] * 2)
    tally = Tally(ended=2, failed=0, total=10, front_size=1, workers=8)
    assert on_cpu.left_s(tally) == pytest.approx(one / 8 + 7 * 7.0), "timings of a CPU come one after the other"


# Stuck phases


def ended_phases(stalls: Stalls, seconds: list[float], worker: str = "a") -> None:
    for trial, each in enumerate(seconds, start=100):
        stalls.heard(
            {"event": "phase", "trial": trial, "phase": "proxy", "worker": worker, "values": {"seconds": each}}
        )
        stalls.heard({"event": "done", "trial": trial, "worker": worker})


def test_by_default_a_phase_may_be_silent_for_twenty_medians_and_ten_minutes(clock: Clock) -> None:
    stalls = Stalls()
    assert stalls.limit_s("proxy") == 3600.0, "before any is known"
    ended_phases(stalls, [2.0, 4.0, 90.0])
    assert stalls.limit_s("proxy") == 600.0
    ended_phases(stalls, [100.0, 120.0])
    assert stalls.limit_s("proxy") == 20 * 90.0
    assert stalls.limit_s("throughput") == 3600.0


def test_a_silent_phase_is_stuck_once_and_a_waiting_or_unheard_one_is_not(clock: Clock) -> None:
    stalls = Stalls()
    ended_phases(stalls, [2.0])
    event = {"event": "progress", "phase": "proxy", "worker": "b"}
    for trial in (1, 2, 3):
        stalls.submitted(trial)
    stalls.heard({**event, "trial": 1})
    stalls.heard({**event, "trial": 2, "waiting": "process 7"})
    clock.now += 590.0
    assert stalls.stuck() == []
    clock.now += 130.0
    assert stalls.stuck() == [(1, "proxy: no progress for 12m00s, ended (--stall)")]
    assert stalls.stuck() == []
    stalls.heard({**event, "trial": 2, "waiting": ""})
    clock.now += 590.0
    assert stalls.stuck() == []
    clock.now += 20.0
    assert [trial for trial, _ in stalls.stuck()] == [2]


def test_a_limit_of_ones_own_holds_after_a_workers_first_phase_and_none_never(clock: Clock) -> None:
    stalls = Stalls(30.0)
    assert stalls.limit_s("proxy", "a") == 600.0, "it may load data"
    ended_phases(stalls, [5.0], "a")
    assert (stalls.limit_s("proxy", "a"), stalls.limit_s("proxy", "b")) == (30.0, 600.0)
    stalls.heard({"event": "failed", "trial": 7, "worker": "a", "reason": "killed"})
    assert stalls.limit_s("proxy", "a") == 600.0, "in a new process"
    never = Stalls(inf)
    never.heard({"event": "progress", "trial": 1, "phase": "proxy"})
    clock.now += 1e6
    assert never.stuck() == []
