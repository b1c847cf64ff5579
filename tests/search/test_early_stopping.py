"""Early stopping: its invariants, and hand-made rungs whose decision can be computed."""

import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.search import Curve, RungScore, goes_on
from archsearch.search.early_stopping import CurveTable, Gain, score_floor

_ERROR = 0.005


def curve(trial: int, costs: tuple[float, ...], *scores: float, error: float = _ERROR) -> Curve:
    return Curve(
        trial=trial, costs=costs, scores=tuple(RungScore(value=value, standard_error=error) for value in scores)
    )


@st.composite
def rungs(draw: st.DrawFn, num_costs: int = 2, most: int = 24) -> list[Curve]:
    """Trials of few distinct costs (so that they are comparable), most with one finished rung more than the first."""
    number = draw(st.integers(1, most))
    score = st.floats(0.0, 1.0, width=32)
    curves = []
    for trial in range(1, number + 1):
        costs = tuple(float(draw(st.integers(0, 3))) for _ in range(num_costs))
        first = draw(score)
        gain = draw(st.floats(-0.05, 0.3))
        curves.append(curve(trial, costs, first, *([first + gain] * draw(st.integers(0, 1)))))
    return curves


def learning(number: int, *, slope: float = 1.0, gain: float = 0.2, scatter: float = 0.01) -> list[Curve]:
    """Trials that finished two rungs; no trial is at least as good as another in both costs."""
    draws = np.random.default_rng(0)
    starts = draws.uniform(0.3, 0.5, number)
    nexts = slope * starts + gain + draws.normal(0, scatter, number)
    return [
        curve(100 + index, (float(index), float(number - index)), start, following)
        for index, (start, following) in enumerate(zip(starts, nexts, strict=True))
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs(), st.floats(0.0, 1.0, width=32))
def test_what_dominates_its_whole_rung_goes_on(others: list[Curve], margin: float) -> None:
    best = max(other.scores[0].value for other in others) + margin
    assert goes_on(curve(0, (-1.0, -1.0), best), others).goes_on


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs())
def test_what_all_others_dominate_beyond_ties_never_goes_on(others: list[Curve]) -> None:
    worst = min(score.value for other in others for score in other.scores)
    # What is lost by the one with the smallest gain is less than any optimism can make up for.
    decision = goes_on(curve(0, (4.0, 4.0), worst - 5.0), others)
    assert not decision.goes_on
    assert decision.stopped_by in {other.trial for other in others}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs(), st.floats(0.0, 1.0, width=32), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(
    others: list[Curve], score: float, cost: int, shuffler: random.Random
) -> None:
    candidate = curve(0, (float(cost), float(cost)), score)
    shuffled = shuffler.sample(others, len(others))
    assert goes_on(candidate, shuffled) == goes_on(candidate, others)
    table = CurveTable(num_costs=2, num_rungs=3)
    for other in [curve(99, (0.0, 0.0), 9.0), *others[1:], candidate, *shuffled]:  # some twice, and one that is removed
        table.set(other)
    table.remove(99)
    assert goes_on(candidate, table) == goes_on(candidate, others)
    assert sorted(table.curves(), key=lambda each: each.trial) == [candidate, *others]
    pairs = [(other.scores[0].value, other.scores[-1].value) for other in others]
    assert Gain.fit(shuffler.sample(pairs, len(pairs))) == Gain.fit(pairs)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs(), st.floats(-1.0, 1.0, width=32), st.floats(0.0, 1.0, width=32), st.integers(0, 4))
def test_a_better_score_never_stops(others: list[Curve], score: float, more: float, cost: int) -> None:
    candidate = curve(0, (float(cost), 3.0), score)
    better = curve(0, (float(cost), 3.0), score + more)
    assert goes_on(better, others).goes_on or not goes_on(candidate, others).goes_on


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs(), st.floats(0.0, 1.0, width=32), st.integers(0, 3), st.integers(0, 3))
def test_an_objective_that_is_the_same_for_all_decides_nothing_and_one_more_never_stops(
    others: list[Curve], score: float, first: int, second: int
) -> None:
    candidate = curve(0, (float(first), 2.0), score)
    decision = goes_on(candidate, others)
    same = [replace(other, costs=(*other.costs, 1.0)) for other in others]
    assert goes_on(replace(candidate, costs=(*candidate.costs, 1.0)), same) == decision
    others = others[:7]  # from eight on, another objective makes another front, and another floor
    more = [replace(other, costs=(*other.costs, float(other.trial % 3))) for other in others]
    with_one_more = goes_on(replace(candidate, costs=(*candidate.costs, float(second))), more)
    assert with_one_more.goes_on or not goes_on(candidate, others).goes_on


@settings(derandomize=True, deadline=None, max_examples=60)
@given(rungs(), st.floats(0.0, 1.0, width=32), st.floats(0.5, 4.0))
def test_the_unit_and_the_place_of_a_cost_decide_nothing(others: list[Curve], score: float, unit: float) -> None:
    candidate = curve(0, (2.0, 1.0), score)
    moved = [replace(other, costs=(unit * other.costs[1] + 1, other.costs[0])) for other in others]
    assert goes_on(replace(candidate, costs=(unit * 1.0 + 1, 2.0)), moved) == goes_on(candidate, others)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 20), st.floats(0.0, 0.99), st.sampled_from([0.5, 1.0, 1.5]))
def test_scores_within_ties_stop_no_trial(number: int, share: float, slope: float) -> None:
    error = 0.02
    tie = share * 2 * 2**0.5 * error
    learnt = learning(number, slope=slope, scatter=1e-6)  # gains that are all but certain
    others = [curve(trial, (0.0, 0.0), 0.4 + tie, error=error) for trial in range(1, 9)]
    assert goes_on(curve(0, (1.0, 1.0), 0.4, error=error), [*others, *learnt]).goes_on
    if number > 1:
        following = slope * 0.4 + 0.2 + 0.99 * tie
        others = [curve(trial, (0.0, 0.0), 0.4, following, error=error) for trial in range(1, 9)]
        assert goes_on(curve(0, (1.0, 1.0), 0.4, error=error), [*others, *learnt]).goes_on


def test_a_hopeless_score_stops_even_the_cheapest_trial() -> None:
    front = [curve(10 + index, (float(index), 0.0), 0.5 + 0.01 * index) for index in range(12)]
    good, hopeless = curve(1, (-1.0, 0.0), 0.48), curve(2, (-2.0, 0.0), 0.2)
    assert goes_on(good, front).goes_on
    decision = goes_on(hopeless, front)
    assert (decision.goes_on, decision.stopped_by) == (False, None)
    assert "its score 0.200 is too low to matter" in str(decision.reason)
    # Seven trials are too few for a floor.
    assert goes_on(hopeless, front[:7]).goes_on


def test_hopeless_trials_do_not_lower_the_floor() -> None:
    front = [curve(10 + index, (float(index), 0.0), 0.5 + 0.01 * index) for index in range(12)]
    dominated = [curve(50 + index, (20.0, 1.0), 0.1) for index in range(30)]
    floor = score_floor([*front, *dominated], 0)
    assert floor is not None
    assert floor.value == pytest.approx(0.5 - (0.61 - 0.5))
    assert floor == score_floor(front, 0)
    # Nor does a hopeless trial that was stopped, once enough trials have gone on.
    went_on = [replace(one, scores=(*one.scores, RungScore(value=0.9))) for one in front]
    assert score_floor([*went_on, curve(60, (-2.0, 0.0), 0.1)], 0) == floor


def test_gain_is_the_least_squares_line_once_there_are_many_pairs() -> None:
    curves = learning(4000, slope=0.7, gain=0.3, scatter=0.02)
    pairs = [(one.scores[0].value, one.scores[1].value) for one in curves]
    gain = Gain.fit(pairs)
    scores, nexts = np.array(pairs).T
    (slope, intercept), covariance = np.polyfit(scores, nexts, 1, cov=True)
    assert gain.slope == pytest.approx(slope, abs=1e-3)
    assert gain.expected(0.0) == pytest.approx(intercept, abs=1e-3)
    assert gain.variance**0.5 == pytest.approx(0.02, rel=0.03)
    assert gain.slope_variance**0.5 == pytest.approx(covariance[0, 0] ** 0.5, rel=0.03)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_with_few_pairs_the_prior_dominates(number: int) -> None:
    gain = Gain.fit([(0.3 + 0.1 * index, 0.6 - 0.1 * index) for index in range(number)])
    assert gain.expected(0.5) - gain.expected(0.4) > 0.0
    assert gain.variance**0.5 >= 0.05 * (4 / 5) ** 0.5


def test_measured_noise_is_in_the_residuals_once() -> None:
    """Coverage: of candidates that would have tied with a rival at the next rung, at most the tail beyond z is stopped."""
    draws, error, scatter = np.random.default_rng(1), 0.01, 0.02
    truth = draws.normal(0.4, 0.05, 400)
    first = truth + draws.normal(0, error, 400)
    following = truth + 0.2 + draws.normal(0, scatter, 400) + draws.normal(0, error, 400)
    learnt = [
        curve(1000 + index, (float(index), float(-index)), float(a), float(b), error=error)
        for index, (a, b) in enumerate(zip(first[:100], following[:100], strict=True))
    ]
    stopped = 0
    for index in range(100, 400):
        # A rival whose next score equals what this one's truth would have got there.
        rival = curve(
            1, (-900.0, -900.0), float(first[index]), float(following[index] + draws.normal(0, error)), error=error
        )
        candidate = curve(0, (-500.0, -500.0), float(first[index]), error=error)
        stopped += not goes_on(candidate, [*learnt, rival]).goes_on
    tail = 1 - statistics.NormalDist().cdf(2.0)
    assert stopped / 300 < 2 * tail


def test_the_reason_names_the_trial_that_is_out_of_reach_and_what_it_is_no_worse_in() -> None:
    others = [curve(12, (0.0, 0.0), 0.6, 0.9), curve(13, (0.0, 0.0), 0.5, 0.7), *learning(20)]
    decision = goes_on(curve(0, (1.0, 0.0), 0.3), others, names=("throughput_img_s", "params"))
    assert decision.stopped_by == 12
    assert decision.reason is not None
    assert decision.reason.startswith(
        "trial 12 is no worse in throughput_img_s and params, and its next score 0.900 is beyond 0.5"
    )


def test_a_trial_that_is_worse_in_any_cost_or_at_this_rung_stops_no_other() -> None:
    candidate = curve(0, (1.0, 1.0), 0.4)
    assert goes_on(candidate, [curve(1, (0.0, 1.5), 0.9, 0.95), *learning(20)]).goes_on
    assert goes_on(candidate, [curve(2, (0.0, 0.0), 0.39, 0.95), *learning(20)]).goes_on
    assert not goes_on(candidate, [curve(3, (0.0, 0.0), 0.41, 0.95), *learning(20)]).goes_on
    assert goes_on(candidate, []).goes_on
