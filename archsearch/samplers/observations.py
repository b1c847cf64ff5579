"""The trials of a study as observations for a sampler: measured, inferred or pending, and the final scores of stopped trials inferred from their curves."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from archsearch.metrics import is_dominated
from archsearch.samplers.candidates import Costs
from archsearch.samplers.pool import Params, Pool

PROPOSAL = "known_cost:params"
# User attributes of trials that were stopped early: {"steps": score}, and {"index of an objective": value} of what was measured before.
CURVE, MEASURED = "learning_curve", "measured"
# User attribute of any trial: {"index of an objective": standard error of its value}, which the model of that objective takes as known.
STANDARD_ERRORS = "standard_errors"
FIXED = "fixed_params"  # Optuna's name for what was enqueued
# The ridge that pulls the slope towards 1 weighs as much as this many pairs of usual spread.
_SHRINKAGE = 4.0

Curve = Mapping[int, float]  # score by steps


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One trial. `values`: minimised, nan where unknown; `variances`: of the errors of values that are noisy or inferred, by index of the objective.

    `is_fitted`: hyperparameters are fitted to this one and those like it; where no trial has it, to the first ones.
    """

    number: int
    params: Params
    state: TrialState
    values: tuple[float, ...]
    variances: Mapping[int, float] = field(default_factory=dict)
    is_fitted: bool = False

    def pick_values(self, objectives: Sequence[int]) -> tuple[float, ...]:
        """The values of these objectives."""
        return tuple(self.values[objective] for objective in objectives)

    def with_value(self, objective: int, value: float) -> "Observation":
        """The same with this value of an objective."""
        values = tuple(value if index == objective else old for index, old in enumerate(self.values))
        return replace(self, values=values)


@dataclass(frozen=True, kw_only=True)
class Observations:
    """`rows`: complete and stopped trials in the order in which they ended, then pending ones, at most MOST_MODELLED; `seen`: keys of all candidates."""

    rows: tuple[Observation, ...]
    seen: frozenset[Hashable]

    def in_state(self, *states: TrialState) -> list[Observation]:
        """Trials in one of these states."""
        return [row for row in self.rows if row.state in states]

    def with_pending(self, number: int, params: Params, costs: Mapping[int, float]) -> "Observations":
        """With one more running trial, of which only its known objectives `costs` are known."""
        width = max((len(row.values) for row in self.rows), default=0) or max(costs, default=0) + 1
        values = tuple(costs.get(index, math.nan) for index in range(width))
        row = Observation(number=number, params=params, state=TrialState.RUNNING, values=values)
        return replace(self, rows=(*self.rows, row))

    def pending(self, known: Sequence[int]) -> list[Observation]:
        """Running trials whose known objectives are finite."""
        return [row for row in self.in_state(TrialState.RUNNING) if all(map(math.isfinite, row.pick_values(known)))]

    def measured(self, objective: int, known: Sequence[int]) -> list[Observation]:
        """Complete and stopped trials with a value, measured or inferred, of this objective and finite ones of the known objectives.

        An infinite value, a failed measurement, counts as the worst finite one; without a finite one such trials are left out.
        """
        rows = [
            row
            for row in self.in_state(TrialState.COMPLETE, TrialState.PRUNED)
            if not math.isnan(row.values[objective]) and all(map(math.isfinite, row.pick_values(known)))
        ]
        worst = max((row.values[objective] for row in rows if math.isfinite(row.values[objective])), default=None)
        if worst is None:
            return []
        return [row if math.isfinite(row.values[objective]) else row.with_value(objective, worst) for row in rows]


def signs(study: Study) -> tuple[int, ...]:
    """1 for an objective that is minimised, -1 for one that is maximised."""
    return tuple(-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions)


def own_params(trial: FrozenTrial) -> Params:
    """The trial's own parameters."""
    return dict(trial.params)


@dataclass(frozen=True, kw_only=True)
class Read:
    """A finished trial as it was read: the candidate's key, its observation if it is one, and its curve, minimised."""

    trial: FrozenTrial
    key: Hashable | None
    row: Observation | None
    curve: Mapping[int, float]


def read_observations(
    study: Study,
    pool: Pool,
    costs: Costs,
    curve_of: int | None,
    number: int,
    describe: Callable[[FrozenTrial], Params] = own_params,
    cache: dict[int, Read] | None = None,
) -> Observations:
    """All trials but `number`; `describe` gives the parameters of complete trials outside the pool, such as papers' models.

    `cache` keeps finished trials from one call to the next; it is for one study and one pool.
    """
    cache = {} if cache is None else cache
    directions = signs(study)
    every: list[Read] = []
    for trial in sorted(study.get_trials(deepcopy=False), key=_end):
        found = cache.get(trial.number)
        if found is None or found.trial is not trial:
            found = _read(trial, pool, costs, directions, curve_of, describe)
            if trial.state.is_finished():
                cache[trial.number] = found
        if trial.number != number:
            every.append(found)
    rows = _choose([one.row for one in every if one.row is not None])
    if curve_of is not None and any(row.state != TrialState.COMPLETE for row in rows):
        rows = _with_curves(rows, every, curve_of)
    return Observations(rows=tuple(rows), seen=frozenset({one.key for one in every} - {None}))


def _end(trial: FrozenTrial) -> tuple[datetime, int]:
    """Trials in the order in which they ended, so that one which ends later than others of higher numbers does not change what comes before them: the
    hyperparameters fitted to the first ones stay. Running trials are last.
    """
    ended_at = trial.datetime_complete if trial.state.is_finished() else None
    return (ended_at or datetime.max, trial.number)


def _read(
    trial: FrozenTrial,
    pool: Pool,
    costs: Costs,
    directions: tuple[int, ...],
    curve_of: int | None,
    describe: Callable[[FrozenTrial], Params],
) -> Read:
    params, row = asked_params(trial), None
    key = pool.key(params)
    if trial.state == TrialState.COMPLETE:
        values = tuple(sign * value for sign, value in zip(directions, trial.values, strict=True))
        params = describe(trial) if key is None else params
        row = Observation(
            number=trial.number, params=params, state=trial.state, values=values, variances=_variances(trial)
        )
    elif trial.state in (TrialState.RUNNING, TrialState.PRUNED) and key is not None:
        found = _measured(trial, directions)
        found |= dict(zip(costs.known, costs.get(key, params, directions), strict=True))
        values = tuple(found.get(index, math.nan) for index in range(len(directions)))
        row = Observation(
            number=trial.number, params=params, state=trial.state, values=values, variances=_variances(trial)
        )
    curve = {} if curve_of is None else _curve(trial.user_attrs.get(CURVE), directions[curve_of])
    return Read(trial=trial, key=key, row=row, curve=curve)


# Up to so many trials all are modelled, since an ask takes the cube of their number.
MOST_MODELLED = 1000
_MOST_FRONT = 400  # of them on the front
MOST_FITTED = 200  # of them to fit hyperparameters to
_FIT_GROWTH = 1.15
_GOLDEN = (
    0x9E3779B1  # 2**32 over the golden ratio: the numbers with the smallest products, modulo 2**32, are spread evenly
)


def _choose(rows: list[Observation]) -> list[Observation]:
    """All rows up to MOST_MODELLED; else pending ones, the front, some to fit to, which stay the same for a while, and an even spread of the others.

    Nothing but the rows themselves counts.
    """
    if len(rows) <= MOST_MODELLED:
        return rows
    pending = [index for index, row in enumerate(rows) if row.state == TrialState.RUNNING]
    number = len(rows) - len(pending)
    complete = [index for index, row in enumerate(rows) if row.state == TrialState.COMPLETE]
    size = int(MOST_MODELLED * _FIT_GROWTH ** math.floor(math.log(number / MOST_MODELLED, _FIT_GROWTH)))
    fitted = _spread([index for index in complete if index < size], MOST_FITTED)
    chosen = dict.fromkeys((*pending, *fitted, *_front(rows, complete)))
    others = [index for index in range(len(rows)) if index not in chosen]
    chosen |= dict.fromkeys(_spread(others, max(0, MOST_MODELLED - len(chosen))))
    fits = set(fitted)
    return [replace(rows[index], is_fitted=True) if index in fits else rows[index] for index in sorted(chosen)]


def _spread(indices: Sequence[int], number: int) -> list[int]:
    """`number` of these indices, or all if they are fewer."""
    if len(indices) <= number:
        return list(indices)
    array = np.array(indices, dtype=np.int64)
    return [int(index) for index in array[np.argsort(array * _GOLDEN % 2**32, kind="stable")[:number]]]


def _front(rows: Sequence[Observation], complete: Sequence[int]) -> list[int]:
    """Indices of the front; of a large one some, evenly along its first objective."""
    values = np.array([rows[index].values for index in complete], dtype=np.float64)
    finite = np.flatnonzero(np.all(np.isfinite(values), axis=1))
    members = finite[~is_dominated(values[finite])]
    members = members[np.argsort(values[members, 0], kind="stable")]
    if len(members) > _MOST_FRONT:
        members = members[np.linspace(0, len(members) - 1, _MOST_FRONT).astype(np.int64)]
    return [complete[index] for index in members]


def _measured(trial: FrozenTrial, directions: Sequence[int]) -> dict[int, float]:
    """The user attribute MEASURED by index of the objective, minimised."""
    found = _by_objective(trial, MEASURED)
    return {index: directions[index] * value for index, value in found.items() if index < len(directions)}


def _variances(trial: FrozenTrial) -> dict[int, float]:
    """The squares of the user attribute STANDARD_ERRORS by index of the objective."""
    return {index: error**2 for index, error in _by_objective(trial, STANDARD_ERRORS).items() if math.isfinite(error)}


def _by_objective(trial: FrozenTrial, name: str) -> dict[int, float]:
    """A user attribute by index of the objective; entries of another form are left out."""
    attribute = trial.user_attrs.get(name)
    if not isinstance(attribute, Mapping):
        return {}
    return {
        int(index): float(value)
        for index, value in attribute.items()
        if str(index).isdecimal() and isinstance(value, int | float)
    }


def asked_params(trial: FrozenTrial) -> Params:
    """The trial's parameters and, for one that has not got a value for each of them yet, those enqueued or proposed for it."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.params
    return {**trial.system_attrs.get(PROPOSAL, {}), **trial.system_attrs.get(FIXED, {}), **trial.params}


def _with_curves(rows: Iterable[Observation], every: Sequence[Read], curve_of: int) -> list[Observation]:
    """The observations, with the final scores of stopped and of running trials inferred where complete ones allow it."""
    rows = list(rows)
    curves = {one.trial.number: one.curve for one in every}
    finished = [
        (one.curve, one.row.values[curve_of])
        for one in every
        if one.row is not None and one.row.state == TrialState.COMPLETE and math.isfinite(one.row.values[curve_of])
    ]
    infer = FinalScores(finished)
    for place, row in enumerate(rows):
        is_open = row.state != TrialState.COMPLETE and (
            row.state == TrialState.PRUNED or math.isnan(row.values[curve_of])
        )
        found = infer(curves[row.number]) if is_open else None
        if found is not None:
            rows[place] = replace(
                row.with_value(curve_of, found.value), variances={**row.variances, curve_of: found.variance}
            )
    return rows


def _curve(attribute: Any, sign: int) -> dict[int, float]:
    """The user attribute CURVE by steps, minimised; entries of another form are left out."""
    if not isinstance(attribute, Mapping):
        return {}
    return {
        int(steps): sign * float(score)
        for steps, score in attribute.items()
        if str(steps).isdecimal() and isinstance(score, int | float) and math.isfinite(score)
    }


class Inferred(NamedTuple):
    """A final score and the variance of its error."""

    value: float
    variance: float


class _Line(NamedTuple):
    """A regression of final scores on the scores of one rung; `variance` is of its errors."""

    centre: float
    target: float
    slope: float
    variance: float


class FinalScores:
    """Infers the final score of a stopped curve, from its last rung by a linear regression over the finished (curve, final score) that have that rung."""

    def __init__(self, finished: Sequence[tuple[Curve, float]]) -> None:
        self._finished = finished
        self._lines: dict[int, _Line | None] = {}

    def __call__(self, stopped: Curve) -> Inferred | None:
        """None for an empty curve, or when no finished one has the rung."""
        if not stopped:
            return None
        last = max(stopped)
        if last not in self._lines:
            self._lines[last] = self._fit(last)
        line = self._lines[last]
        if line is None:
            return None
        return Inferred(float(line.target + line.slope * (stopped[last] - line.centre)), line.variance)

    def _fit(self, rung: int) -> _Line | None:
        pairs = [(curve[rung], final) for curve, final in self._finished if rung in curve]
        if not pairs:
            return None
        early, final = (np.array(column) for column in zip(*pairs, strict=True))
        centre, target = early.mean(), final.mean()
        spread = ((early - centre) ** 2).sum()
        typical = spread / len(pairs)
        penalty = _SHRINKAGE * typical
        together = ((early - centre) * (final - target)).sum()
        slope = (together + penalty) / (spread + penalty) if spread + penalty > 0 else 1.0
        errors = final - target - slope * (early - centre)
        # A few errors give a poor variance: the spread of the finished scores counts as _SHRINKAGE more of them.
        variance = ((errors**2).sum() + _SHRINKAGE * max(final.var(), typical)) / (len(pairs) + _SHRINKAGE)
        return _Line(centre, target, slope, float(variance))
