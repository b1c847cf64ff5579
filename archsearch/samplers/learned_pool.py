"""A pool learned from a study's own trials: names, distributions, and which names depend on the value of another."""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from archsearch.samplers.encoding import ABSENT, numbers_of
from archsearch.samplers.pool import Params, items_key

# Trials before the structure is believed.
_ENOUGH = 8
_STEP = 0.2
_FRESH = 0.2
# Integers in a wider range say how much, not what.
_FEW = 16


class LearnedPool:
    """What the finished trials of a study show of its space.

    A name that some trials lack depends on the value of one other; as long as several could be it, only candidates are made about which they
    agree. Draws nothing before a few trials have finished and every category of words that all of them have has shown all its choices.
    """

    def __init__(self, study: Study, number: int, seed: int) -> None:
        """Without trial `number`; `seed`: of the draws that are the same in every trial."""
        self._seed = seed
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number != number and trial.params]
        found: dict[str, BaseDistribution] = {}
        for trial in trials:
            found.update(trial.distributions)
        self._distributions = dict(sorted(found.items()))  # a storage may forget the order
        rows = [trial.params for trial in trials if trial.state.is_finished()]
        self._reasons = _all_reasons(self._distributions, rows)
        self._order = _ordered(self._reasons)
        always = [name for name, reasons in self._reasons.items() if not reasons]
        self._unshown = _unshown({name: self._distributions[name] for name in always}, rows)
        self._is_ready = len(rows) >= _ENOUGH and not self._unshown

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Of every name seen."""
        return self._distributions

    def explore(self, rng: random.Random) -> Params:
        """Part of a candidate, for while nothing can be drawn: a category's choice that no finished trial has shown."""
        name = rng.choice(sorted(self._unshown)) if self._unshown else None
        return {} if name is None else {name: rng.choice(self._unshown[name])}

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Each name uniform, where it applies. Most draws are the same in every trial, so that their costs are known from the last one."""
        if not self._is_ready:
            return []
        fresh, stock = math.ceil(_FRESH * number), random.Random(self._seed)
        found = [self._complete({}, rng if index < fresh else stock) for index in range(number)]
        return [params for params in found if params is not None]

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """Another value of one name, and what then follows."""
        if not self._is_ready:
            return None
        name = rng.choice(sorted(params))
        return self._complete({**params, name: _near(self._distributions[name], params[name], rng)}, rng)

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
        """The parameters, once all are there that their values call for."""
        whole = self._complete(params, random.Random(0)) if params else None
        return None if whole is None or not whole.keys() <= params.keys() else items_key(params)

    def _complete(self, params: Mapping[str, Any], rng: random.Random) -> Params | None:
        """With what is missing drawn, without what does not apply; None where that is not clear."""
        whole: Params = {}
        for name in self._order:
            if reasons := self._reasons[name]:
                votes = {vote for reason in reasons if (vote := reason.vote(whole)) is not None}
                if len(votes) != 1:
                    return None
                if votes == {False}:
                    continue
            whole[name] = params[name] if name in params else _uniform(self._distributions[name], rng)
        return whole


class _Reason(NamedTuple):
    """A category that could decide whether a name is there, and its values in trials that have the name, and in those that lack it."""

    decider: str
    having: frozenset[Any]
    lacking: frozenset[Any]

    def vote(self, params: Mapping[str, Any]) -> bool | None:
        """Whether the name is there; None for a value that no trial has shown."""
        value = params.get(self.decider, ABSENT)
        return True if value in self.having else False if value in self.lacking else None


def _all_reasons(distributions: Mapping[str, BaseDistribution], rows: Sequence[Params]) -> dict[str, list[_Reason]]:
    """For each name that some rows lack: what could decide about it, all of the first kind of which there is any (see `_rank`)."""
    has = {name: np.array([name in row for row in rows], dtype=bool) for name in distributions}
    ranks = {name: _rank(distributions[name], is_always=bool(has[name].all())) for name in distributions}
    deciders = sorted((name for name, rank in ranks.items() if rank is not None), key=lambda name: (ranks[name], name))
    values = {name: np.array([row.get(name, ABSENT) for row in rows], dtype=object) for name in deciders}
    codes = {name: _codes(found) for name, found in values.items()}
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
    """What to believe first as the decider of a structure: words, then small numbers, then what is itself not always there. None: it decides nothing."""
    if isinstance(distribution, CategoricalDistribution):
        return (0 if numbers_of(distribution) is None else 1) if is_always else 2
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low < _FEW:
        return 1 if is_always else 2
    return None


def _codes(values: NDArray[np.object_]) -> NDArray[np.int64]:
    """Equal numbers for equal values."""
    places: dict[Any, int] = {}
    return np.array([places.setdefault(value, len(places)) for value in values], dtype=np.int64)


def _ordered(reasons: Mapping[str, Sequence[_Reason]]) -> list[str]:
    """Names after those that they depend on; what depends on itself in a ring comes last."""
    order: dict[str, None] = {}
    for _ in reasons:
        for name, found in reasons.items():
            if all(reason.decider in order for reason in found):
                order[name] = None
        if len(order) == len(reasons):
            break
    return [*order, *(name for name in reasons if name not in order)]


def _unshown(distributions: Mapping[str, BaseDistribution], rows: Sequence[Params]) -> dict[str, list[Any]]:
    """Choices of categories (of words: numbers decide no structure worth waiting for) that no row has."""
    found: dict[str, list[Any]] = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, CategoricalDistribution) and numbers_of(distribution) is None:
            shown = {row.get(name, ABSENT) for row in rows}
            if missing := [choice for choice in distribution.choices if choice not in shown]:
                found[name] = missing
    return found


def _uniform(distribution: BaseDistribution, rng: random.Random) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return rng.choice(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
    return _at(distribution, rng.random())


def _near(distribution: BaseDistribution, value: Any, rng: random.Random) -> Any:
    """Another category; a number some way off."""
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != value]
        return rng.choice(others) if others else value
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
    low, high = _ends(distribution)
    place = ((math.log(value) if distribution.log else value) - low) / ((high - low) or 1.0)
    return _at(distribution, min(1.0, max(0.0, rng.gauss(place, _STEP))))


def _ends(distribution: IntDistribution | FloatDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _at(distribution: IntDistribution | FloatDistribution, place: float) -> Any:
    """The value at a share of the range, on the distribution's grid."""
    low, high = _ends(distribution)
    raw = low + place * (high - low)
    value = math.exp(raw) if distribution.log else raw
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value
