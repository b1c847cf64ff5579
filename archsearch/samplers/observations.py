"""What a study says to a sampler: measured, inferred and pending candidates, as plain rows."""

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

PLAN = "known_cost:params"
# User attributes of trials that were stopped early: {"steps": score}, and {"index of an objective": value} of what was measured before.
CURVE, MEASURED = "learning_curve", "measured"
_ENQUEUED = "fixed_params"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial. `values`: minimised, nan where unknown; `variances`: of values that are inferred, by objective."""

    number: int
    params: Params
    state: TrialState
    values: tuple[float, ...]
    variances: Mapping[int, float] = field(default_factory=dict)

    def values_of(self, objectives: Sequence[int]) -> tuple[float, ...]:
        """Some of the values."""
        return tuple(self.values[objective] for objective in objectives)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """`rows`: complete, stopped and pending trials by number; `seen`: keys that are not proposed again."""

    rows: tuple[Row, ...]
    seen: frozenset[Hashable]

    def of(self, *states: TrialState) -> list[Row]:
        """Rows in these states."""
        return [row for row in self.rows if row.state in states]

    def measured(self, objective: int, known: Sequence[int]) -> list[Row]:
        """Complete and stopped trials with a value of the objective, measured or inferred, and of the known ones."""
        return [
            row
            for row in self.of(TrialState.COMPLETE, TrialState.PRUNED)
            if all(map(math.isfinite, row.values_of((objective, *known))))
        ]


def signs(study: Study) -> tuple[int, ...]:
    """1 for an objective that is minimised, -1 for one that is maximised."""
    return tuple(-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions)


def described(trial: FrozenTrial) -> Params:
    """The trial's own parameters."""
    return dict(trial.params)


def read(
    study: Study,
    pool: Pool,
    costs: Costs,
    curve_of: int | None,
    number: int,
    describe: Callable[[FrozenTrial], Params] = described,
) -> Evidence:
    """Everything but trial `number` itself; `describe` speaks for complete trials that are no candidates of the pool."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    trials = [trial for trial in trials if trial.number != number]
    directions = signs(study)
    rows: list[Row] = []
    seen: set[Hashable] = set()
    for trial in trials:
        params = asked_params(trial)
        key = pool.key(params)
        seen.add(key)
        if trial.state == TrialState.COMPLETE:
            values = tuple(sign * value for sign, value in zip(directions, trial.values, strict=True))
            said = describe(trial) if key is None else params
            rows.append(Row(number=trial.number, params=said, state=trial.state, values=values))
        elif trial.state in (TrialState.RUNNING, TrialState.PRUNED) and key is not None:
            found = _measured(trial, directions)
            found |= dict(zip(costs.known, costs.of(key, params, directions), strict=True))
            values = tuple(found.get(index, math.nan) for index in range(len(directions)))
            rows.append(Row(number=trial.number, params=params, state=trial.state, values=values))
    if curve_of is not None:
        rows = _with_curves(rows, {trial.number: trial for trial in trials}, curve_of, directions[curve_of])
    return Evidence(rows=tuple(rows), seen=frozenset(seen - {None}))


def _measured(trial: FrozenTrial, directions: Sequence[int]) -> dict[int, float]:
    """The user attribute {"index": value}, minimised; empty for anything else."""
    attribute = trial.user_attrs.get(MEASURED)
    if not isinstance(attribute, Mapping):
        return {}
    return {
        int(index): directions[int(index)] * float(value)
        for index, value in attribute.items()
        if str(index).isdecimal() and int(index) < len(directions) and isinstance(value, int | float)
    }


def asked_params(trial: FrozenTrial) -> Params:
    """What the trial was given: its parameters, and, unless it got to its end with these, what was enqueued or planned for it."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.params
    return {**trial.system_attrs.get(PLAN, {}), **trial.system_attrs.get(_ENQUEUED, {}), **trial.params}


def _with_curves(rows: Iterable[Row], trials: Mapping[int, FrozenTrial], curve_of: int, sign: int) -> list[Row]:
    """The rows, with final scores of stopped trials inferred where complete ones allow it."""
    rows = list(rows)
    curves = {row.number: _curve(trials[row.number].user_attrs.get(CURVE), sign) for row in rows}
    finished = [
        (curves[row.number], row.values[curve_of])
        for row in rows
        if row.state == TrialState.COMPLETE and math.isfinite(row.values[curve_of])
    ]
    return [
        _inferred(row, curve_of, curves[row.number], finished) if row.state == TrialState.PRUNED else row
        for row in rows
    ]


def _curve(attribute: Any, sign: int) -> dict[int, float]:
    """The user attribute {"steps": score} with whole steps; empty for anything else."""
    if not isinstance(attribute, Mapping):
        return {}
    return {
        int(steps): sign * float(score)
        for steps, score in attribute.items()
        if str(steps).isdecimal() and isinstance(score, int | float) and math.isfinite(score)
    }


def _inferred(
    row: Row, curve_of: int, curve: Mapping[int, float], finished: Sequence[tuple[Mapping[int, float], float]]
) -> Row:
    found = infer_final(curve, finished)
    if found is None:
        return row
    values = tuple(found.value if index == curve_of else value for index, value in enumerate(row.values))
    return replace(row, values=values, variances={curve_of: found.variance})


# As many pairs as would halve the regression's pull: a slope of 1 and a shift are believed until the pairs say otherwise.
_SHRINKAGE = 4.0


class Inferred(NamedTuple):
    """A final score and the variance of its error."""

    value: float
    variance: float


Curve = Mapping[int, float]


def infer_final(stopped: Curve, finished: Sequence[tuple[Curve, float]]) -> Inferred | None:
    """From the last rung of `stopped` by a linear regression over finished (curve, final score) that have it; None without such."""
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
    # Ridge towards a slope of 1: the strength is that of _SHRINKAGE pairs of usual spread.
    penalty = _SHRINKAGE * typical
    together = ((early - centre) * (final - target)).sum()
    slope = (together + penalty) / (spread + penalty) if spread + penalty > 0 else 1.0
    errors = final - target - slope * (early - centre)
    # With few pairs the errors say little: the spread of the finished scores stands in for some of them.
    variance = ((errors**2).sum() + _SHRINKAGE * max(final.var(), typical)) / (len(pairs) + _SHRINKAGE)
    return Inferred(float(target + slope * (stopped[last] - centre)), float(variance))
