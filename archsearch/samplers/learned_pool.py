"""A pool learned from a study's own trials: names, distributions, and which names depend on the value of another."""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from archsearch.samplers.encoding import ABSENT, numeric_values
from archsearch.samplers.pool import Params, items_key

_ENOUGH = 8  # finished trials before the structure is used
_STEP = 0.2  # standard deviation of a mutated number, as a share of its range
_FRESH = 0.2  # share of a draw that is new in every trial
_FEW = 16  # integers of a wider range are quantities, which decide about no other name


class LearnedPool:
    """The space of a study, as far as its finished trials show it.

    A name that some trials lack is taken to depend on the value of one other name; while several names are possible, only candidates are made for which
    all of them give the same answer. Draws nothing before _ENOUGH trials have finished and every category (of text) that all trials have has shown all its
    choices.
    """

    def __init__(self, study: Study, number: int, seed: int) -> None:
        """Learned from all trials but `number`; `seed`: of the draws that are the same in every trial."""
        self._seed = seed
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number != number and trial.params]
        found: dict[str, BaseDistribution] = {}
        for trial in trials:
            found.update(trial.distributions)
        self.distributions = dict(sorted(found.items()))  # a storage may forget the order
        rows = [trial.params for trial in trials if trial.state.is_finished()]
        self._reasons = _find_reasons(self.distributions, rows)
        self._order = _order_names(self._reasons)
        # Choices, by category that all trials have, that no finished one has taken; numbers are left out, since too little depends on them.
        self._unshown: dict[str, list[Any]] = {}
        for name, distribution in self.distributions.items():
            if self._reasons[name] or numeric_values(distribution) is not None:
                continue
            assert isinstance(distribution, CategoricalDistribution), "anything else is a number"
            shown = {row.get(name, ABSENT) for row in rows}
            if missing := [choice for choice in distribution.choices if choice not in shown]:
                self._unshown[name] = missing
        self._is_ready = len(rows) >= _ENOUGH and not self._unshown

    def explore(self, rng: random.Random) -> Params:
        """Part of a candidate for as long as `draw` gives nothing: a choice of a category that no finished trial has taken."""
        name = rng.choice(sorted(self._unshown)) if self._unshown else None
        return {} if name is None else {name: rng.choice(self._unshown[name])}

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Each name uniform, where it applies. Most draws are the same in every trial, so that their costs are cached."""
        if not self._is_ready:
            return []
        fresh, stock = math.ceil(_FRESH * number), random.Random(self._seed)
        found = [self._complete({}, rng if index < fresh else stock) for index in range(number)]
        return [params for params in found if params is not None]

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """Another value of one name, with the names that depend on it."""
        if not self._is_ready:
            return None
        name = rng.choice(sorted(params))
        return self._complete({**params, name: _perturb(self.distributions[name], params[name], rng)}, rng)

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """Each name from one of the two."""
        if not self._is_ready:
            return None
        child = {}
        for name in sorted(first.keys() | second.keys()):
            source = first if rng.random() < 0.5 else second
            child[name] = source.get(name, first.get(name, second.get(name)))
        return self._complete(child, rng)

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The parameters themselves when they are complete, else None."""
        whole = self._complete(params, random.Random(0)) if params else None
        return None if whole is None or not whole.keys() <= params.keys() else items_key(params)

    def _complete(self, params: Mapping[str, Any], rng: random.Random) -> Params | None:
        """The parameters with missing names drawn and names that do not apply left out; None where the trials do not show which apply."""
        whole: Params = {}
        for name in self._order:
            if reasons := self._reasons[name]:
                votes = {vote for reason in reasons if (vote := reason.vote(whole)) is not None}
                if len(votes) != 1:
                    return None
                if votes == {False}:
                    continue
            distribution = self.distributions[name]
            if name in params:
                whole[name] = params[name]
            elif isinstance(distribution, CategoricalDistribution):
                whole[name] = rng.choice(distribution.choices)
            else:
                assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
                whole[name] = _value_in_range(distribution, rng.random())
        return whole


class _Reason(NamedTuple):
    """A name that may decide whether another one is there: its values in trials that have the other name, and in trials that lack it."""

    decider: str
    having: frozenset[Any]
    lacking: frozenset[Any]

    def vote(self, params: Mapping[str, Any]) -> bool | None:
        """Whether the other name is there; None for a value that no trial has taken."""
        value = params.get(self.decider, ABSENT)
        return True if value in self.having else False if value in self.lacking else None


def _find_reasons(distributions: Mapping[str, BaseDistribution], rows: Sequence[Params]) -> dict[str, list[_Reason]]:
    """For each name that some rows lack: the names that may decide about it, all of the best rank (see `_rank`) among them."""
    has = {name: np.array([name in row for row in rows], dtype=bool) for name in distributions}
    ranks = {name: _rank(distributions[name], is_always=bool(has[name].all())) for name in distributions}
    deciders = sorted((name for name, rank in ranks.items() if rank is not None), key=lambda name: (ranks[name], name))
    values = {name: np.array([row.get(name, ABSENT) for row in rows], dtype=object) for name in deciders}
    codes: dict[str, NDArray[np.int64]] = {}  # equal for equal values
    for name, found in values.items():
        places: dict[Any, int] = {}
        codes[name] = np.array([places.setdefault(value, len(places)) for value in found], dtype=np.int64)
    reasons: dict[str, list[_Reason]] = {}
    for name, having in has.items():
        reasons[name] = []
        for other in deciders if having.any() and not having.all() else ():
            if reasons[name] and ranks[other] != ranks[reasons[name][0].decider]:
                break
            is_there = has[other][having].all() and other != name
            if is_there and not np.intersect1d(codes[other][having], codes[other][~having]).size:
                reasons[name].append(_Reason(other, *(frozenset(values[other][part]) for part in (having, ~having))))
    return reasons


def _rank(distribution: BaseDistribution, *, is_always: bool) -> int | None:
    """How likely a name decides about others, 0 first: categories of text, then small numbers, then names that are not always there. None: never."""
    if isinstance(distribution, CategoricalDistribution):
        return (0 if numeric_values(distribution) is None else 1) if is_always else 2
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low < _FEW:
        return 1 if is_always else 2
    return None


def _order_names(reasons: Mapping[str, Sequence[_Reason]]) -> list[str]:
    """The names, each after those that it depends on; names that depend on each other come last."""
    order: dict[str, None] = {}
    for _ in reasons:
        for name, found in reasons.items():
            if all(reason.decider in order for reason in found):
                order[name] = None
        if len(order) == len(reasons):
            break
    return [*order, *(name for name in reasons if name not in order)]


def _perturb(distribution: BaseDistribution, value: Any, rng: random.Random) -> Any:
    """Another choice of a category; a number from a normal around the value."""
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != value]
        return rng.choice(others) if others else value
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
    low, high = _ends(distribution)
    place = ((math.log(value) if distribution.log else value) - low) / ((high - low) or 1.0)
    return _value_in_range(distribution, min(1.0, max(0.0, rng.gauss(place, _STEP))))


def _ends(distribution: IntDistribution | FloatDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _value_in_range(distribution: IntDistribution | FloatDistribution, place: float) -> Any:
    """The value at a share of the range, on the distribution's grid."""
    low, high = _ends(distribution)
    raw = low + place * (high - low)
    value = math.exp(raw) if distribution.log else raw
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value
