"""What samplers share that plan a whole candidate at a trial's first question, and answer every name from that plan."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial


class PlannedSampler(BaseSampler):
    """Everything is asked independently: a conditional space has no joint one that Optuna could sample from."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: the plan is made on the first independent question."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, as above."""
        return {}
