"""A second look at the best candidates of a proposal, with features too dear to be worked out for all of them."""

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from archsearch.metrics import Array
from archsearch.samplers.acquisition import Acquisition
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.observations import Evidence, Row
from archsearch.samplers.pool import Params, Pool
from archsearch.samplers.surrogate import Surrogate

Features = Mapping[str, float]

# User attribute of trials: {"name": value} of what was found out about them before they were measured.
FEATURES = "features"
SHORTLIST = 6
# Trials with features before these are looked at: one or two would be read as a trend.
_ENOUGH = 8
_PREFIX = "feature:"


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """The candidates of a second look: parameters with features, as rows of numbers, with their known costs."""

    params: list[Params]
    encoded: Array
    costs: Array


class SecondLook:
    """Chooses among the first few by models that have the features as further numbers, once enough trials have them.

    `features` gives those of whole parameters; each candidate is asked about once.
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
        evidence: Evidence,
        unknown: Sequence[int],
        known: Sequence[int],
    ) -> Params:
        """One of `best`, whose known objectives are `costs` (N, K); the first where features cannot tell yet."""
        told = _told(study)
        measured = {index: [row for row in evidence.measured(index, known) if row.number in told] for index in unknown}
        names = sorted(set.intersection(*(set(features) for features in told.values()))) if told else []
        if not names or any(len(rows) < _ENOUGH for rows in measured.values()):
            return best[0]
        mine = [self._of(params, pool) for params in best]
        usual = {name: statistics.median(features[name] for features in told.values()) for name in names}
        spans = _distributions(names, list(told.values()))
        if spans != self._spans:  # fits on another scale would make a proposal depend on when this process began
            self._spans, self._fits = spans, {}
        encoder = Encoder({**pool.distributions, **spans})
        pending = [_with(row, told.get(row.number, usual), names) for row in evidence.of(TrialState.RUNNING)]
        models = {
            index: Surrogate(
                encoder, [_with(row, told[row.number], names) for row in rows], pending, index, known, self._fits
            )
            for index, rows in measured.items()
        }
        wide = [_widened(params, features, names) for params, features in zip(best, mine, strict=True)]
        shortlist = Shortlist(params=list(best), encoded=encoder.encode(wide), costs=costs)
        scores = Acquisition(models, known, evidence, shortlist)(slice(0, len(best)))
        return best[int(np.argmax(scores))]

    def _of(self, params: Params, pool: Pool) -> Features:
        key = pool.key(params)
        if key not in self._found:
            self._found[key] = self._features(params)
        return self._found[key]


def _told(study: Study) -> dict[int, Features]:
    """Features of trials, by number."""
    attributes = {trial.number: trial.user_attrs.get(FEATURES) for trial in study.get_trials(deepcopy=False)}
    return {number: found for number, found in attributes.items() if isinstance(found, Mapping) and found}


def _distributions(names: Sequence[str], every: Sequence[Features]) -> dict[str, BaseDistribution]:
    """From the least to the most that was seen of each."""
    found: dict[str, BaseDistribution] = {}
    for name in names:
        values = [features[name] for features in every if name in features]
        found[f"{_PREFIX}{name}"] = FloatDistribution(min(values), max(values))
    return found


def _widened(params: Params, features: Features, names: Sequence[str]) -> Params:
    return {**params, **{f"{_PREFIX}{name}": features[name] for name in names if name in features}}


def _with(row: Row, features: Features, names: Sequence[str]) -> Row:
    return replace(row, params=_widened(row.params, features, names))
