"""Re-ranks the shortlist of a proposal with features that are too expensive to compute for all candidates."""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution

from archsearch.errors import UserError
from archsearch.metrics import Array
from archsearch.samplers.acquisition import Acquisition
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.observations import Observation, Observations
from archsearch.samplers.pool import Params, Pool, shorten
from archsearch.samplers.surrogate import Surrogate

Features = Mapping[str, float]

# User attribute of trials: {"name": value}, computed before the trial was measured.
FEATURES = "features"
SHORTLIST = 6
_ENOUGH = 8  # trials with features before these are used: the models would read one or two as a trend
_PREFIX = "feature:"


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """The candidates to re-rank: their parameters and features as rows of numbers (N, W), and their known costs (N, K)."""

    encoded: Array
    costs: Array


class Reranker:
    """Chooses among the best few candidates by models with the features as further inputs, once enough trials have features.

    `features` computes those of complete parameters, and is called once for a candidate.
    """

    def __init__(self, features: Callable[[Params], Features]) -> None:
        self._features = features
        self._found: dict[Hashable, Features] = {}
        self._fits: dict[Hashable, Hyperparameters] = {}
        self._spans: dict[str, BaseDistribution] = {}

    def choose(
        self,
        best: Sequence[Params],
        costs: Array,
        *,
        pool: Pool,
        study: Study,
        observations: Observations,
        unknown: Sequence[int],
        known: Sequence[int],
        make_encoder: Callable[[Mapping[str, BaseDistribution]], Encoder],
        slopes: Mapping[int, Array],
    ) -> int:
        """The place of one of `best`, whose known objectives are `costs` (N, K): the first while too few trials have features."""
        attributes = {trial.number: trial.user_attrs.get(FEATURES) for trial in study.get_trials(deepcopy=False)}
        by_trial = {number: found for number, found in attributes.items() if isinstance(found, Mapping) and found}
        measured = {
            index: [row for row in observations.measured(index, known) if row.number in by_trial] for index in unknown
        }
        names = sorted(set.intersection(*(set(features) for features in by_trial.values()))) if by_trial else []
        if not names or any(len(rows) < _ENOUGH for rows in measured.values()):
            return 0
        mine = []
        for params in best:
            key = pool.key(params)
            if key not in self._found:
                self._found[key] = _check_features(self._features(params))
            mine.append(self._found[key])
        usual = {name: statistics.median(features[name] for features in by_trial.values()) for name in names}
        spans = _feature_distributions(names, list(by_trial.values()))
        if spans != self._spans:  # with fits on another scale a proposal would depend on when this process began
            self._spans, self._fits = spans, {}
        encoder = make_encoder(spans)
        pending = [_with_features(row, by_trial.get(row.number, usual), names) for row in observations.pending(known)]
        models = {
            index: Surrogate(
                encoder,
                [_with_features(row, by_trial[row.number], names) for row in rows],
                pending,
                index,
                known,
                self._fits,
                slopes[index],
            )
            for index, rows in measured.items()
        }
        wide = [_add_features(params, features, names) for params, features in zip(best, mine, strict=True)]
        shortlist = Shortlist(encoded=encoder.encode(wide), costs=costs)
        scores = Acquisition(models, known, observations, shortlist)(slice(0, len(best)))
        return int(np.argmax(scores))


def _check_features(features: Any) -> Features:
    """The features; UserError for anything but finite numbers by name."""
    if isinstance(features, Mapping) and all(
        isinstance(name, str) and isinstance(value, Real) and math.isfinite(value) for name, value in features.items()
    ):
        return features
    raise UserError(f"KnownCostSampler: features returned {shorten(features)}; it must return finite numbers by name")


def _feature_distributions(names: Sequence[str], every: Sequence[Features]) -> dict[str, BaseDistribution]:
    """The range of each feature over the trials."""
    found: dict[str, BaseDistribution] = {}
    for name in names:
        values = [features[name] for features in every if name in features]
        found[f"{_PREFIX}{name}"] = FloatDistribution(min(values), max(values))
    return found


def _add_features(params: Params, features: Features, names: Sequence[str]) -> Params:
    return {**params, **{f"{_PREFIX}{name}": features[name] for name in names if name in features}}


def _with_features(row: Observation, features: Features, names: Sequence[str]) -> Observation:
    return replace(row, params=_add_features(row.params, features, names))
