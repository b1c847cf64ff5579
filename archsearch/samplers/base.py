"""Base of the samplers that propose a whole candidate when a trial first asks for a parameter, and answer every later name from the proposal; and studies with
other trials for them to read.
"""

from collections.abc import Container, Mapping
from copy import copy
from copy import deepcopy as deep
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


class ProposingSampler(BaseSampler):
    """Samples every name independently: a conditional space has no joint one that Optuna could sample from."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: the proposal is made for the first independent name."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Empty, as above."""
        return {}


def with_changed(study: Study, changed: Mapping[int, FrozenTrial]) -> Study:
    """The same study with these trials, by number, in place of those that it has, or after them, for reading; what is stored stays as it is."""
    if not changed:
        return study
    seen = copy(study)  # with a cache of trials of its own
    seen._storage = _Storage(study._storage, changed)  # type: ignore[assignment]  # it has the methods of the one behind it
    return seen


class _Storage:
    """A storage in which some trials read otherwise, and some are added."""

    def __init__(self, storage: Any, changed: Mapping[int, FrozenTrial]) -> None:
        self._behind, self._changed = storage, dict(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Optuna's method."""
        trials = self._behind.get_all_trials(study_id, deepcopy=False)
        seen = list(({trial.number: trial for trial in trials} | self._changed).values())
        kept = [trial for trial in seen if states is None or trial.state in states]
        return deep(kept) if deepcopy else kept
