"""A pool learned from a study's own trials: names, distributions, and which names depend on the value of another."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from archsearch.samplers.encoding import ABSENT, numeric_values
from archsearch.samplers.observations import PROPOSAL, asked_params
from archsearch.samplers.pool import Params, items_key

_ENOUGH = 8  # finished trials before the structure is used
_STEP = 0.2  # standard deviation of a mutated number, as a share of its range
_FRESH = 0.2  # share of a draw that is new in every trial
# Words of a category, or integers, that are all tried. A name of a wider range decides by a threshold, if at all, and comes last (rank) as a reason.
_FEW = 16
_WIDE = 3


class LearnedPool:
    """The space of a study, as far as its finished trials show it; all candidates agree with `fixed`.

    A name that some trials lack is taken to depend on the value of one other name; while several names are possible, only candidates are made for which
    all of them give the same answer. A value of a deciding name is *open* until a trial has shown which names go with it, and so is a choice
    of a category of a few words; no candidate has an open value, but `explore` gives them.
    """

    def __init__(self, study: Study, number: int, seed: int, fixed: Mapping[str, Any] | None = None) -> None:
        """Learned from all trials but `number`; `seed`: of the draws that are the same in every trial."""
        self._seed = seed
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number != number]
        found: dict[str, BaseDistribution] = {}
        for trial in trials:
            found.update(trial.distributions)
        self.distributions = dict(sorted(found.items()))  # a storage may forget the order
        self._fixed = {name: value for name, value in (fixed or {}).items() if name in found}
        self._rows = [trial.params for trial in trials if trial.state.is_finished() and trial.params]
        self._reasons = _find_reasons(self.distributions, self._rows)
        self._order = _order_names(self._reasons)
        self._trials = trials
        self._open = {name: values for name in self._order if (values := self._find_open(name))}
        self.is_ready = len(self._rows) >= _ENOUGH

    def _find_open(self, name: str) -> list[Any]:
        """Values of this name that no candidate may have yet."""
        distribution = self.distributions[name]
        reasons = [
            reason
            for found in self._reasons.values()
            for reason in found
            if reason.decider == name and not reason.is_wide
        ]
        values = _list_values(distribution, math.inf if reasons else _FEW)
        if name in self._fixed or values is None:
            return []
        if reasons:
            return [value for value in values if any(reason.vote({name: value}) is None for reason in reasons)]
        shown = {row.get(name, ABSENT) for row in self._rows}
        is_word = numeric_values(distribution) is None and not self._reasons[name]
        return [value for value in values if value not in shown] if is_word else []

    def explore(self, rng: random.Random) -> Params:
        """Part of a candidate, from which the study shows more of its space: the values tried least of every name that has few.

        Once `is_ready`, open values alone; empty when no trial but those that still run has to show any.
        """
        part: Params = {}
        uses = self._uses if self._open or not self.is_ready else Counter()
        for name in self._order:
            values = self._open.get(name) if self.is_ready else _list_values(self.distributions[name], _FEW)
            fewest = min((uses[name, value] for value in values or ()), default=0)
            if not values or name in self._fixed or (self.is_ready and fewest):
                continue
            if deciders := self._deciders_of(name):
                if part:
                    continue  # one at a time, since two may exclude each other
                row = rng.choice([row for row in self._rows if name in row])
                part |= {decider: row[decider] for decider in deciders if decider in row}
            part[name] = rng.choice([value for value in values if uses[name, value] == fewest])
        return {**part, **self._fixed} if part else {}

    @cached_property
    def _uses(self) -> Counter[tuple[str, Any]]:
        """How many trials were given each value of a name, those included that still run, or that the study did not ask for it."""
        uses: Counter[tuple[str, Any]] = Counter()
        for trial in self._trials:
            uses.update({*trial.system_attrs.get(PROPOSAL, {}).items(), *asked_params(trial).items()})
        return uses

    def _deciders_of(self, name: str) -> set[str]:
        """The names that decide, directly or not, whether this one is there."""
        found: set[str] = set()
        new = {reason.decider for reason in self._reasons[name]}
        while new - found:
            found |= new
            new = {reason.decider for decider in new for reason in self._reasons[decider]}
        return found

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Each name uniform, where it applies. Most draws are the same in every trial, so that their costs are cached."""
        fresh, stock = math.ceil(_FRESH * number), random.Random(self._seed)
        found = [self.complete({}, rng if index < fresh else stock) for index in range(number)]
        return [params for params in found if params is not None]

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """Another value of one name, with the names that depend on it."""
        name = rng.choice(sorted(params))
        distribution, value = self.distributions[name], params[name]
        if isinstance(distribution, CategoricalDistribution):
            others = [choice for choice in self._closed(name, distribution.choices) if choice != value]
            other = rng.choice(others) if others else value
        else:
            other = _perturb(distribution, value, rng)
        return self.complete({**params, name: other}, rng)

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """Each name from one of the two."""
        child = {}
        for name in sorted(first.keys() | second.keys()):
            source = first if rng.random() < 0.5 else second
            child[name] = source.get(name, first.get(name, second.get(name)))
        return self.complete(child, rng)

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The parameters themselves when they are complete, else None."""
        is_whole = all(name in params or self._applies(name, params) is False for name in self._order)
        return items_key(params) if params and is_whole else None

    def list_all(self, most: int) -> list[Params] | None:
        """All candidates; None where they are, or may be, more than `most`."""
        found: list[Params] = [{}]
        for name in self._order:
            values = [self._fixed[name]] if name in self._fixed else _list_values(self.distributions[name], most)
            if values is None:
                return None
            closed, more = self._closed(name, values), []
            for params in found:
                applies = self._applies(name, params)
                if applies is not None:
                    more += [{**params, name: value} for value in closed] if applies else [params]
            if len(more) > most:
                return None
            found = more
        return found

    def _applies(self, name: str, params: Mapping[str, Any]) -> bool | None:
        """Whether a candidate with these parameters has the name; None where the trials do not show it."""
        reasons = self._reasons[name]
        if not reasons:
            return True
        votes = {vote for reason in reasons if (vote := reason.vote(params)) is not None}
        return votes.pop() if len(votes) == 1 else None

    def complete(self, params: Mapping[str, Any], rng: random.Random) -> Params | None:
        """The parameters with missing names drawn and names that do not apply left out; None where the trials do not show which apply."""
        given = {**params, **self._fixed}
        whole: Params = {}
        for name in self._order:
            applies = self._applies(name, whole)
            if applies is None:
                return None
            if applies:
                whole[name] = given[name] if name in given else self._draw_value(name, rng)
        return whole

    def _closed(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        """Those of a name's values that candidates may have."""
        return [value for value in values if value not in self._open[name]] if name in self._open else values

    def _draw_value(self, name: str, rng: random.Random) -> Any:
        distribution = self.distributions[name]
        if name in self._open or isinstance(distribution, CategoricalDistribution):
            values = _list_values(distribution, math.inf) or ()
            return rng.choice(self._closed(name, values) or values)
        assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
        return _value_in_range(distribution, rng.random())


class _Reason(NamedTuple):
    """A name that may decide whether another one is there: its values in trials that have the other name, and in trials that lack it."""

    decider: str
    having: frozenset[Any]
    lacking: frozenset[Any]
    is_wide: bool

    def vote(self, params: Mapping[str, Any]) -> bool | None:
        """Whether the other name is there; None where the values of the trials do not show it.

        A value that no trial has taken counts where it is a number between two that agree, of numbers in order; in a wide range also beyond them.
        """
        value = params.get(self.decider, ABSENT)
        if value in self.having or value in self.lacking:
            return value in self.having
        if not _is_number(value) or not _are_apart(self.having, self.lacking):
            return None
        low, high = sorted((self.having, self.lacking), key=min)
        if (min(low) < value or self.is_wide) and value < max(low):
            return low is self.having
        if min(high) < value and (value < max(high) or self.is_wide):
            return high is self.having
        return None


def _are_apart(first: frozenset[Any], second: frozenset[Any]) -> bool:
    """Whether both hold numbers, and all of one lie below all of the other."""
    if not all(map(_is_number, first | second)):
        return False
    return bool(max(first) < min(second) or max(second) < min(first))


def _find_reasons(distributions: Mapping[str, BaseDistribution], rows: Sequence[Params]) -> dict[str, list[_Reason]]:
    """For each name that some rows lack: the names that may decide about it, all of the best rank (see `_rank`) among them."""
    has = {name: np.array([name in row for row in rows], dtype=bool) for name in distributions}
    ranks = {name: _rank(distributions[name], is_always=bool(has[name].all())) for name in distributions}
    deciders = sorted(ranks, key=lambda name: (ranks[name], name))
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
                with_name, without = (frozenset(values[other][part]) for part in (having, ~having))
                if (is_wide := ranks[other] == _WIDE) and not _are_apart(with_name, without):
                    continue
                reasons[name].append(_Reason(other, with_name, without, is_wide))
    return reasons


def _rank(distribution: BaseDistribution, *, is_always: bool) -> int:
    """How likely a name decides about others, 0 first: categories of text, then small numbers, then names that are not always there; wide ranges last."""
    if isinstance(distribution, CategoricalDistribution):
        return (0 if numeric_values(distribution) is None else 1) if is_always else 2
    is_small = isinstance(distribution, IntDistribution) and distribution.high - distribution.low < _FEW
    return (1 if is_always else 2) if is_small else _WIDE


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_values(distribution: BaseDistribution, most: float) -> Sequence[Any] | None:
    """All values; None where they are more than `most` or have no steps."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices if len(distribution.choices) <= most else None
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other"
    if distribution.single():
        return [distribution.low]
    if distribution.step is None:
        return None
    number = round((distribution.high - distribution.low) / distribution.step) + 1
    return None if number > most else [distribution.low + place * distribution.step for place in range(number)]


def _perturb(distribution: BaseDistribution, value: Any, rng: random.Random) -> Any:
    """A number from a normal around the value."""
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
