"""The trials of a study as observations for a sampler: measured, inferred or pending, and the final scores of stopped trials inferred from their curves."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from archsearch.samplers.candidates import Costs
from archsearch.samplers.pool import Params, Pool

PROPOSAL = "known_cost:params"
# User attributes of trials that were stopped early: {"steps": score}, and {"index of an objective": value} of what was measured before.
CURVE, MEASURED = "learning_curve", "measured"
FIXED = "fixed_params"  # Optuna's name for what was enqueued
# The ridge that pulls the slope towards 1 weighs as much as this many pairs of usual spread.
_SHRINKAGE = 4.0

Curve = Mapping[int, float]  # score by steps


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One trial. `values`: minimised, nan where unknown; `variances`: of the values that are inferred, by index of the objective."""

    number: int
    params: Params
    state: TrialState
    values: tuple[float, ...]
    variances: Mapping[int, float] = field(default_factory=dict)

    def pick_values(self, objectives: Sequence[int]) -> tuple[float, ...]:
        """The values of these objectives."""
        return tuple(self.values[objective] for objective in objectives)

    def with_value(self, objective: int, value: float) -> "Observation":
        """The same with this value of an objective."""
        values = tuple(value if index == objective else old for index, old in enumerate(self.values))
        return replace(self, values=values)


@dataclass(frozen=True, kw_only=True)
class Observations:
    """`rows`: complete, stopped and pending trials in the order of their numbers; `seen`: keys of candidates that are not proposed again."""

    rows: tuple[Observation, ...]
    seen: frozenset[Hashable]

    def in_state(self, *states: TrialState) -> list[Observation]:
        """Trials in one of these states."""
        return [row for row in self.rows if row.state in states]

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


def read_observations(
    study: Study,
    pool: Pool,
    costs: Costs,
    curve_of: int | None,
    number: int,
    describe: Callable[[FrozenTrial], Params] = own_params,
) -> Observations:
    """All trials but `number`; `describe` gives the parameters of complete trials outside the pool, such as papers' models."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    trials = [trial for trial in trials if trial.number != number]
    directions = signs(study)
    rows: list[Observation] = []
    seen: set[Hashable] = set()
    for trial in trials:
        params = asked_params(trial)
        key = pool.key(params)
        seen.add(key)
        if trial.state == TrialState.COMPLETE:
            values = tuple(sign * value for sign, value in zip(directions, trial.values, strict=True))
            params = describe(trial) if key is None else params
            rows.append(Observation(number=trial.number, params=params, state=trial.state, values=values))
        elif trial.state in (TrialState.RUNNING, TrialState.PRUNED) and key is not None:
            found = _measured(trial, directions)
            found |= dict(zip(costs.known, costs.get(key, params, directions), strict=True))
            values = tuple(found.get(index, math.nan) for index in range(len(directions)))
            rows.append(Observation(number=trial.number, params=params, state=trial.state, values=values))
    if curve_of is not None:
        rows = _with_curves(rows, {trial.number: trial for trial in trials}, curve_of, directions[curve_of])
    return Observations(rows=tuple(rows), seen=frozenset(seen - {None}))


def _measured(trial: FrozenTrial, directions: Sequence[int]) -> dict[int, float]:
    """The user attribute MEASURED by index of the objective, minimised; entries of another form are left out."""
    attribute = trial.user_attrs.get(MEASURED)
    if not isinstance(attribute, Mapping):
        return {}
    return {
        int(index): directions[int(index)] * float(value)
        for index, value in attribute.items()
        if str(index).isdecimal() and int(index) < len(directions) and isinstance(value, int | float)
    }


def asked_params(trial: FrozenTrial) -> Params:
    """The trial's parameters and, for one that has not got a value for each of them yet, those enqueued or proposed for it."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.params
    return {**trial.system_attrs.get(PROPOSAL, {}), **trial.system_attrs.get(FIXED, {}), **trial.params}


def _with_curves(
    rows: Iterable[Observation], trials: Mapping[int, FrozenTrial], curve_of: int, sign: int
) -> list[Observation]:
    """The observations, with the final scores of stopped trials inferred where complete ones allow it."""
    rows = list(rows)
    curves = {row.number: _curve(trials[row.number].user_attrs.get(CURVE), sign) for row in rows}
    finished = [
        (curves[row.number], row.values[curve_of])
        for row in rows
        if row.state == TrialState.COMPLETE and math.isfinite(row.values[curve_of])
    ]
    for place, row in enumerate(rows):
        found = infer_final(curves[row.number], finished) if row.state == TrialState.PRUNED else None
        if found is not None:
            rows[place] = replace(row.with_value(curve_of, found.value), variances={curve_of: found.variance})
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


def infer_final(stopped: Curve, finished: Sequence[tuple[Curve, float]]) -> Inferred | None:
    """The final score of a stopped curve, from its last rung by a linear regression over the finished (curve, final score) that have that rung.

    None for an empty curve, or when no finished one has the rung.
    """
    if not stopped:
        return None
    last = max(stopped)
    pairs = [(curve[last], final) for curve, final in finished if last in curve]
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
    return Inferred(float(target + slope * (stopped[last] - centre)), float(variance))
