"""Base of the samplers that propose a whole candidate when a trial first asks for a parameter, and answer every later name from the proposal."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial


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
