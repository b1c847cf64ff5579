"""The time left and the pace of a run, on a clock of the test's own: whole runs are played, and what is said is compared with what comes."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock, standing_clock
from support.runs import make_rung_config

from archsearch.search import Pace, Tally, TimeLeft

FIXED, SAMPLED = 2, 14
TIMING_S, STEP_S, JUDGING_S = 7.0, 0.2, 3.0
STEPS = {"proxy@25": (0, 25), "proxy@100": (25, 100), "proxy": (100, 400)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return standing_clock(monkeypatch)


class Player:
    """Plays a run to a `TimeLeft`: two fixed trials and 14 sampled ones, half of which stop at the second rung; then the front again."""

    def __init__(self, clock: Clock, left: TimeLeft, seed: int) -> None:
        self.clock, self.left, self.rng = clock, left, random.Random(seed)
        self.tally = Tally(ended=0, failed=0, total=FIXED + SAMPLED, front_size=0)
        self.said: list[tuple[float, float | None]] = []  # working time so far, and what was said to be left
        self.waited_s = 0.0

    def tick(self, seconds: float = 0.5) -> None:
        self.clock.now += seconds
        self.said.append((self.clock.now - self.waited_s, self.left.left_s(self.tally)))

    def phase(self, trial: int, name: str, seconds: float) -> None:
        event = {"event": "progress", "trial": trial, "phase": name}
        self.left.progress(event)
        begin, end = STEPS.get(name, (0, 0))
        ticks = max(1, round(seconds / 0.5))
        for tick in range(1, ticks + 1):
            self.tick(seconds / ticks)
            if end:
                self.left.progress({**event, "step": begin + round((end - begin) * tick / ticks), "steps": 400})
        if end:
            self.tick(JUDGING_S)
        self.left.progress(
            {"event": "phase", "trial": trial, "phase": name, "values": {"seconds": seconds + JUDGING_S * bool(end)}}
        )

    def wait(self, trial: int, name: str, seconds: float) -> None:
        event = {"event": "progress", "trial": trial, "phase": name}
        self.left.progress(event)
        self.left.progress({**event, "waiting": "process 7 (run other)"})
        before = self.left.left_s(self.tally)
        self.clock.now += seconds
        self.waited_s += seconds
        assert self.left.waiting == ("process 7 (run other)", seconds)
        assert self.left.left_s(self.tally) == before, "a wait neither counts nor goes down"
        self.left.progress({**event, "waiting": ""})
        assert self.left.waiting is None

    def play(self) -> float:
        """The whole run; returns the working time of its end."""
        for trial in range(FIXED + SAMPLED):
            row = {"trial": trial, "is_fixed": trial < FIXED, "reused_from": None}
            self.left.trial_started(row)
            self.phase(trial, "count", 1.0)
            if trial == 5:
                self.wait(trial, "throughput", 600.0)
            self.phase(trial, "throughput", TIMING_S)
            step_s = STEP_S * self.rng.uniform(0.7, 1.3)
            for name in list(STEPS)[: 3 if trial < FIXED or trial % 2 else 2]:
                self.phase(trial, name, step_s * (STEPS[name][1] - STEPS[name][0]))
            self.left.trial_finished({**row, "state": "complete"})
            self.tally = Tally(ended=trial + 1, failed=0, total=FIXED + SAMPLED, front_size=min(4, trial + 1))
            self.tick(0.2)
        for place in range(1, 5):
            self.left.again_started({"trial": place, "is_fixed": False, "reused_from": None}, place, 4)
            self.phase(place, "again", TIMING_S)
            self.left.member_finished()
            self.tick(0.1)
        return self.clock.now - self.waited_s


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_to_be_left_is_what_comes(tmp_path: Path, clock: Clock, seed: int) -> None:
    began = clock.now
    player = Player(clock, TimeLeft(make_rung_config(tmp_path / "log"), rechecks=True), seed)
    end = player.play()
    first = next(at for at, said in player.said if said is not None)
    assert first - began < 1.0 + TIMING_S + 2.0, "from the first steps of the first training on"
    for at, said in player.said:
        assert (said is not None) == (at >= first)
        if said is not None:
            # Until some sampled candidates have ended, all are taken to come to the end.
            share = 0.5 if at < began + 200 else 0.25
            # Whether the trial at work goes on to its last 300 steps, about 60 s, cannot be known.
            assert abs(said - (end - at)) <= share * (end - at) + 45.0, (at, said, end - at)


def test_a_training_that_waits_after_its_first_steps_takes_none_of_the_wait_off(tmp_path: Path, clock: Clock) -> None:
    left = TimeLeft(make_rung_config(tmp_path / "log"))
    tally = Tally(ended=0, failed=0, total=1, front_size=0)
    event = {"event": "progress", "trial": 0, "phase": "proxy@25"}
    left.trial_started({"trial": 0, "is_fixed": False, "reused_from": None})
    left.progress({"event": "phase", "trial": 0, "phase": "throughput", "values": {"seconds": TIMING_S}})
    left.progress(event)
    clock.now += 2.0
    left.progress({**event, "step": 10, "steps": 400})
    before = left.left_s(tally)
    assert before is not None
    assert before > 0.0
    left.progress({**event, "waiting": "process 7 (run other)"})
    clock.now += 3600.0
    assert left.left_s(tally) == before
    left.progress({**event, "waiting": ""})
    assert left.left_s(tally) == pytest.approx(before)
    clock.now += 1.0
    left.progress({**event, "step": 15, "steps": 400})
    after = left.left_s(tally)
    assert after is not None
    assert 0.5 * before < after < before


def test_it_does_not_swing_when_a_trial_ends(tmp_path: Path, clock: Clock) -> None:
    player = Player(clock, TimeLeft(make_rung_config(tmp_path / "log"), rechecks=True), 0)
    player.play()
    said = [(at, left) for at, left in player.said if left is not None][20:]
    for (at, left), (later, then) in pairwise(said):
        assert abs(then - (left - (later - at))) <= 0.15 * left + 45.0, (at, left, then)


def test_a_time_limit_ends_the_trials_but_not_the_work_on_the_front(tmp_path: Path, clock: Clock) -> None:
    left = TimeLeft(make_rung_config(tmp_path / "log"), rechecks=True, timeout_s=100.0)
    player = Player(clock, left, 0)
    player.play()
    in_time = [said for at, said in player.said if said is not None and at < 1080.0]
    assert max(in_time) < 200.0


def test_another_sessions_rows_give_an_estimate_at_once(tmp_path: Path, clock: Clock) -> None:
    curve = '[{"seconds": 5.0}, {"seconds": 15.0}, {"seconds": 60.0}]'
    row = {"trial": 0, "is_fixed": False, "state": "complete", "reused_from": None, "learning_curve": curve}
    row |= {"seconds_count": 1.0, "seconds_throughput": 7.0}
    left = TimeLeft(make_rung_config(tmp_path / "log"), [row])
    left.trial_started({"trial": 1, "is_fixed": True, "reused_from": None})
    assert left.left_s(Tally(ended=1, failed=0, total=3, front_size=1)) == pytest.approx(2 * 88.0)


# The pace


def trained(pace: Pace, clock: Clock, trial: int, images_s: float, seconds: float, **more: Any) -> Iterator[str | None]:
    """Reports of a training at a constant rate, every half second; gives what is said after each."""
    for number in range(1, int(seconds / 0.5) + 1):
        clock.now += 0.5
        event = {"event": "progress", "trial": trial, "phase": "proxy", "step": number, "steps": 400}
        pace.progress({**event, "images_s": images_s, **more})
        yield pace.slow_words()


def ended(pace: Pace, trial: int) -> None:
    pace.progress({"event": "phase", "trial": trial, "phase": "proxy", "values": {}})


def test_a_training_far_below_the_runs_own_rate_is_noticed_where_others_may_be_the_cause(clock: Clock) -> None:
    pace = Pace()
    for trial in range(3):
        assert set(trained(pace, clock, trial, 200.0, 10, other_cores=0.0)) == {None}
        ended(pace, trial)
    *_, words = trained(pace, clock, 3, 4.0, 10, other_cores=1.8)
    assert words == "slow: 4 img/s, this run's other trainings had 200, other processes use 1.8 cores"
    assert set(trained(pace, clock, 4, 4.0, 10, other_cores=0.0)) == {None}, "an architecture may be slow of itself"
    assert set(trained(pace, clock, 5, 90.0, 10, other_cores=1.8)) == {None}


def test_a_training_that_becomes_slow_or_silent_is_noticed(clock: Clock) -> None:
    pace = Pace()
    assert set(trained(pace, clock, 0, 200.0, 10)) == {None}
    *_, words = trained(pace, clock, 0, 20.0, 8)
    assert words == "slow: 20 img/s, it had 200"
    pace = Pace()
    list(trained(pace, clock, 0, 200.0, 10))
    clock.now += 40.0  # one step takes that long where threads wait for each other
    assert "slow: 2 img/s" in str(pace.slow_words())
