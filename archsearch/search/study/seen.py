"""A run's study as its sampler may see it: ended trials with figures of the present identity only, and running ones with theirs so far."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from math import isfinite, sqrt
from typing import Any

from optuna import Study
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState

from archsearch.results import DEVICE_OBJECTIVES, Row, mean_score, number_of_seeds
from archsearch.samplers import CURVE, KNOWN_COST, MEASURED, STANDARD_ERRORS
from archsearch.search.config import RunConfig
from archsearch.search.study.rows import StoredTrial, learning_curve


def constraint_attrs(row: Row, config: RunConfig, *, is_here: bool = True) -> dict[str, float]:
    """The run's limits as Optuna keeps the constraints of a trial: system attributes, up to 0 where a limit is kept; without figures of the device
    unless they are of this one.
    """
    return {
        f"{_CONSTRAINTS_KEY}:{limit.column}": limit.excess(row[limit.column])
        for limit in config.kept_limits
        if row[limit.column] is not None and (is_here or limit.column not in DEVICE_OBJECTIVES)
    }


def changed_trials(
    study: Study,
    rows: Mapping[int, Row],
    timed: Mapping[int, Mapping[str, Any]],
    seeded: Collection[int],
    config: RunConfig,
    throughput_id: str | None,
) -> dict[int, FrozenTrial]:
    """Ended trials whose stored values are not of this identity, or not of all their seeds, as the sampler may see them; by their numbers.

    `timed`: the timings of trials that were made after they had ended, by throughput_id.
    """
    numbers = {number for number in seeded if "proxy_score" in config.objectives}
    if not DEVICE_OBJECTIVES.isdisjoint(config.objectives):
        numbers |= {
            number
            for number, row in rows.items()
            if row["state"] in ("complete", "stopped")
            and row["throughput_id"] is not None
            and (
                row["throughput_id"] != throughput_id
                or throughput_id in timed.get(number if row["reused_from"] is None else row["reused_from"], {})
            )
        }
    trials = study.get_trials(deepcopy=False) if numbers else []
    return {
        one.number: as_seen(one, rows[one.number], config, throughput_id) for one in trials if one.number in numbers
    }


def trials_under_way(
    study: Study,
    rows: Mapping[int, Row],
    running: Mapping[int, StoredTrial],
    config: RunConfig,
    throughput_id: str | None,
) -> dict[int, FrozenTrial]:
    """Running trials of which something is measured, with that; by their numbers."""
    begun = {number: trial for number, trial in running.items() if trial.phases}
    stored = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if begun else []
    return {
        one.number: as_under_way(
            one, rows[one.number], learning_curve(config, begun[one.number]), config, throughput_id
        )
        for one in stored
        if one.number in begun
    }


def as_seen(trial: FrozenTrial, row: Row, config: RunConfig, throughput_id: str | None) -> FrozenTrial:
    """An ended trial with figures of this identity only.

    One that was timed anew has the new figures, and one that was trained with several seeds their mean score. One of another identity has none that
    depend on the device: to the known-cost sampler it is like a trial that was stopped, whose score counts; others do not see it.
    """
    twin = copy(trial)
    is_here = row["throughput_id"] == throughput_id or DEVICE_OBJECTIVES.isdisjoint(config.objectives)
    if config.limits:
        others = {key: value for key, value in trial.system_attrs.items() if not key.startswith(_CONSTRAINTS_KEY)}
        twin.system_attrs = {**others, **constraint_attrs(row, config, is_here=row["throughput_id"] == throughput_id)}
    if is_here and trial.state == TrialState.COMPLETE:
        twin.values = [mean_score(row) if name == "proxy_score" else float(row[name]) for name in config.objectives]
        twin.user_attrs = {**trial.user_attrs, STANDARD_ERRORS: standard_errors(row, config.objectives)}
        return twin
    names = [name for name in config.objectives if name not in DEVICE_OBJECTIVES and row[name] is not None]
    attrs = {**trial.user_attrs, MEASURED: {str(config.objectives.index(name)): row[name] for name in names}}
    if trial.state == TrialState.COMPLETE:
        attrs.pop(CURVE, None)  # of which a final score would be inferred, though it is known
    twin.user_attrs, twin.values = attrs, None
    twin.state = TrialState.PRUNED if config.sampler == KNOWN_COST else TrialState.FAIL
    return twin


def standard_errors(row: Row, objectives: Sequence[str]) -> dict[str, float]:
    """The attribute STANDARD_ERRORS of a complete trial: the error of its score from the images it was judged by, over several seeds of their mean."""
    error = row["proxy_score_se"]
    if error is None or "proxy_score" not in objectives:
        return {}
    return {str(objectives.index("proxy_score")): error / sqrt(number_of_seeds(row))}


def as_under_way(
    trial: FrozenTrial, row: Row, curve: Mapping[str, float], config: RunConfig, throughput_id: str | None
) -> FrozenTrial:
    """A running trial with the objectives that are measured already, those of the device for this identity only, and its learning `curve` so far."""
    is_here = row["throughput_id"] in (None, throughput_id)
    measured = {
        str(index): row[name]
        for index, name in enumerate(config.objectives)
        if row[name] is not None and isfinite(row[name]) and (is_here or name not in DEVICE_OBJECTIVES)
    }
    twin = copy(trial)
    twin.system_attrs = {**trial.system_attrs, **constraint_attrs(row, config, is_here=is_here)}
    twin.user_attrs = {**trial.user_attrs, MEASURED: measured, **({CURVE: dict(curve)} if curve else {})}
    return twin
