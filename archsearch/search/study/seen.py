"""A run's study as its sampler may see it: ended trials with figures of the present identity only, and running ones with theirs so far."""

from collections.abc import Container, Mapping
from copy import copy
from copy import deepcopy as deep
from math import isfinite
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from archsearch.results import DEVICE_OBJECTIVES, Row
from archsearch.samplers import CURVE, KNOWN_COST, MEASURED
from archsearch.search.config import RunConfig


def with_changed(study: optuna.Study, changed: Mapping[int, FrozenTrial]) -> optuna.Study:
    """The same study with other trials in place of those of these numbers, for reading; what is stored stays as it is."""
    if not changed:
        return study
    seen = copy(study)  # with a cache of trials of its own
    seen._storage = _Storage(study._storage, changed)  # type: ignore[assignment]  # it has the methods of the one behind it
    return seen


class _Storage:
    """A storage in which some trials read otherwise."""

    def __init__(self, storage: Any, changed: Mapping[int, FrozenTrial]) -> None:
        self._behind, self._changed = storage, changed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Optuna's method."""
        trials = self._behind.get_all_trials(study_id, deepcopy=False)
        seen = [self._changed.get(trial.number, trial) for trial in trials]
        kept = [trial for trial in seen if states is None or trial.state in states]
        return deep(kept) if deepcopy else kept


def as_seen(trial: FrozenTrial, row: Row, config: RunConfig, throughput_id: str | None) -> FrozenTrial:
    """An ended trial with figures of this identity only.

    One that was timed anew has the new figures. One of another identity has none that depend on the device: to the known-cost sampler it is
    like a trial that was stopped, whose score counts; others do not see it.
    """
    twin = copy(trial)
    if row["throughput_id"] == throughput_id and trial.state == TrialState.COMPLETE:
        twin.values = [float(row[name]) for name in config.objectives]
        return twin
    names = [name for name in config.objectives if name not in DEVICE_OBJECTIVES and row[name] is not None]
    attrs = {**trial.user_attrs, MEASURED: {str(config.objectives.index(name)): row[name] for name in names}}
    if trial.state == TrialState.COMPLETE:
        attrs.pop(CURVE, None)  # of which a final score would be inferred, though it is known
    twin.user_attrs, twin.values = attrs, None
    twin.state = TrialState.PRUNED if config.sampler == KNOWN_COST else TrialState.FAIL
    return twin


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
    twin.user_attrs = {**trial.user_attrs, MEASURED: measured, **({CURVE: dict(curve)} if curve else {})}
    return twin
