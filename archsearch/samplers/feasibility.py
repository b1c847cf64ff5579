"""The probability that a candidate keeps the constraints of a study: what it limits but does not know of a candidate before it is evaluated."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from scipy.special import ndtr

from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.observations import Observation, Observations
from archsearch.samplers.surrogate import Surrogate

# Values of a constraint before it is modelled.
_ENOUGH = 4
# Before there is a model of the objectives, candidates below this probability are not tried, unless fewer than this share are above it.
_LIKELY = 0.5
_AT_LEAST = 0.1


def read_constraints(study: Study) -> dict[int, dict[str, float]]:
    """The constraints that trials of a study have set, by trial and name."""
    return {trial.number: found for trial in study.get_trials(deepcopy=False) if (found := trial.constraints)}


class Feasibility:
    """Models of a study's constraints (`Trial.set_constraint`: kept up to 0), each a Gaussian process like those of the objectives.

    Constraints count as independent. One with fewer than 4 values is not modelled yet.
    """

    def __init__(
        self,
        values: Mapping[int, Mapping[str, float]],
        observations: Observations,
        encoder: Encoder,
        known: Sequence[int],
        *,
        width: int,
        fits: dict[Hashable, Hyperparameters],
    ) -> None:
        """`values` are those of each trial by name, `width` the number of objectives, and `fits` a cache of hyperparameters."""
        self._values = values
        names = sorted({name for own in values.values() for name in own})
        self._models: list[Surrogate] = []
        for place, name in enumerate(names):
            rows = self._rows(observations, name, known)
            if len(rows) >= _ENOUGH:
                # The constraint is one more value of each observation; its index keeps the fits of several apart.
                wide = [_with_value(row, width + place, values[row.number][name]) for row in rows]
                self._models.append(Surrogate(encoder, wide, [], width + place, known, fits))

    def _rows(self, observations: Observations, name: str, known: Sequence[int]) -> list[Observation]:
        """Observations, in any state, with a finite value of the constraint and of the known objectives."""
        return [
            row
            for row in observations.rows
            if np.isfinite(self._values.get(row.number, {}).get(name, np.nan))
            and np.all(np.isfinite(row.pick_values(known)))
        ]

    def keeps(self, row: Observation) -> bool:
        """Whether a trial keeps all constraints, as far as they are known of it."""
        return all(value <= 0 for value in self._values.get(row.number, {}).values())

    def __call__(self, encoded: Array, costs: Array) -> Array:
        """The probability (C,) that candidates keep every constraint."""
        probability = np.ones(len(encoded))
        for model in self._models:
            means, deviations = model.predict(encoded, costs)
            limit = model.scale(np.zeros(1))
            probability *= ndtr((limit - means) / np.maximum(deviations, 1e-9))
        return probability

    def likely(self, encoded: Array, costs: Array) -> NDArray[np.int64]:
        """Places of the candidates that more likely keep them than not, or of the likeliest tenth where those are fewer."""
        probability = self(encoded, costs)
        number = max(int(np.sum(probability >= _LIKELY)), int(np.ceil(_AT_LEAST * len(probability))))
        return np.sort(np.argsort(-probability, kind="stable")[:number])


def _with_value(row: Observation, place: int, value: float) -> Observation:
    """The observation with one more value at this place."""
    missing = (np.nan,) * (place - len(row.values))
    return replace(row, values=(*row.values, *missing, value), variances={})
