"""Predicts scores of a space's architectures from the trials of an earlier run, whatever its space, budget and proxy were."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder, numeric_values
from archsearch.samplers.observations import MOST_MODELLED, Observation
from archsearch.samplers.pool import Params
from archsearch.samplers.surrogate import Surrogate
from archsearch.space import Arch, Space, params_in_space

# Scores of an earlier run that make a model.
FEWEST_SCORES = 4


class DonorModel:
    """A Gaussian process over an earlier run's candidates: their parameters, as far as `distributions` has the names, and their costs.

    It is fitted when it is first asked, to the last MOST_MODELLED trials. Its predictions are scores up to scale and offset, larger for better ones.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        candidates: Sequence[Params],
        costs: Array,
        scores: Sequence[float],
    ) -> None:
        """`costs` (N, K) and `scores` (N,) of N candidates, at least FEWEST_SCORES."""
        assert len(candidates) == len(costs) == len(scores) >= FEWEST_SCORES, "a model needs some scores"
        ordered = {name: True for name, found in distributions.items() if numeric_values(found) is not None}
        self._encoder = Encoder(distributions, ordered)
        self._rows = [
            Observation(number=number, params=params, state=TrialState.COMPLETE, values=(-score, *cost))
            for number, (params, cost, score) in enumerate(zip(candidates, costs.tolist(), scores, strict=True))
        ][-MOST_MODELLED:]

    def predict(self, candidates: Sequence[Params], costs: Array) -> Array:
        """The predictions (N,) for N candidates with costs (N, K)."""
        means, _ = self._surrogate.predict(self._encoder.encode(candidates), costs)
        return -means

    @cached_property
    def _surrogate(self) -> Surrogate:
        known = range(1, len(self._rows[0].values))
        return Surrogate(self._encoder, self._rows, (), 0, known, {})


class ArchDonor:
    """A donor model of architectures, by the names that `space` has for them, their MACs and parameters."""

    def __init__(self, space: Space, archs: Sequence[Arch], scores: Sequence[float]) -> None:
        """`scores` (N,) of N architectures, at least FEWEST_SCORES."""
        names = {name: CategoricalDistribution(choices) for name, choices in space.parameters().items()}
        self._space = space
        self._model = DonorModel(names, *self._describe(archs), scores)

    def predict(self, archs: Sequence[Arch]) -> Array:
        """The predictions (N,) for N architectures."""
        return self._model.predict(*self._describe(archs))

    def _describe(self, archs: Sequence[Arch]) -> tuple[list[Params], Array]:
        costs = np.array([(arch.cost().macs, arch.cost().params) for arch in archs], dtype=np.float64)
        return [params_in_space(arch, self._space) for arch in archs], costs.reshape(-1, 2)
