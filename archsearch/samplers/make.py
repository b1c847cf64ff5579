"""A run's samplers by name, all inside its band."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial

from archsearch.errors import UserError, did_you_mean
from archsearch.metrics import Array
from archsearch.samplers.donor_model import ArchDonor
from archsearch.samplers.encoding import numeric_values
from archsearch.samplers.in_band import InBandSampler, Proposal
from archsearch.samplers.inputs import Inputs, JoinedInputs
from archsearch.samplers.known_cost import KnownCostSampler
from archsearch.samplers.optuna_samplers import BASES
from archsearch.samplers.space_pool import DESCRIBED, SpacePool, known_costs
from archsearch.space import Arch, Bounds, Params, Space

KNOWN_COST = "known-cost"
SAMPLERS = (KNOWN_COST, *BASES)
PredictThroughput = Callable[[Arch], float | None]


def check_sampler(name: str) -> None:
    """Raise UserError for a name that is no sampler."""
    if name not in SAMPLERS:
        hint = did_you_mean(name, SAMPLERS)
        raise UserError(f"--sampler: unknown sampler {name!r}{hint}; allowed: {', '.join(SAMPLERS)}")


def make_sampler(
    name: str,
    space: Space,
    bounds: Bounds,
    seed: int,
    already: Callable[[], AbstractSet[str]] = frozenset,
    *,
    objectives: tuple[str, ...] = (),
    predict: PredictThroughput | None = None,
    batch_size: int = 1,
    scores: Mapping[str, Callable[[Arch], float]] | None = None,
    donors: Sequence[ArchDonor] = (),
) -> InBandSampler:
    """The sampler of that name inside `bounds`; `already()` gives the arch_ids to avoid. Raises UserError for an unknown name.

    The known-cost sampler also needs the study's `objectives`. `predict`, where a trusted calibration exists, gives images/s of an architecture at
    `batch_size`. Estimates of the proxy score of every candidate:
    `scores` of the architecture, each of which takes microseconds, or is nan, and predictions of `donors` from earlier runs.
    """
    check_sampler(name)
    if name == KNOWN_COST:
        return KnownCostInBand(
            space,
            bounds,
            seed,
            already,
            objectives=objectives,
            predict=predict,
            batch_size=batch_size,
            scores=scores,
            donors=donors,
        )
    return InBandSampler(BASES[name], space, bounds, seed, already)


class KnownCostInBand(InBandSampler):
    """The known-cost sampler over the architectures of a band; the parameters of fixed trials in the space's names are in their user attributes."""

    def __init__(
        self,
        space: Space,
        bounds: Bounds,
        seed: int,
        already: Callable[[], AbstractSet[str]] = frozenset,
        *,
        objectives: tuple[str, ...],
        predict: PredictThroughput | None = None,
        batch_size: int = 1,
        scores: Mapping[str, Callable[[Arch], float]] | None = None,
        donors: Sequence[ArchDonor] = (),
    ) -> None:
        super().__init__(BASES["random"], space, bounds, seed, already)
        self._pool = SpacePool(space, bounds, seed)
        self._sampler = KnownCostSampler(
            known_costs(self._pool, objectives, predict, batch_size),
            seed=seed,
            pool=self._pool,
            curve_of=objectives.index("proxy_score") if "proxy_score" in objectives else None,
            already=already,
            describe=_described_params,
            inputs=_estimates(self._pool, scores or {}, donors) if "proxy_score" in objectives else None,
            # A space's numbers are sizes.
            ordered={
                name: True for name, found in self._pool.distributions.items() if numeric_values(found) is not None
            },
        )

    def propose_many(self, study: Study, number: int, count: int) -> list[Proposal]:
        """Architectures with the largest expected hypervolume improvement, all from one fit; fewer when the band is used up."""
        found = self._sampler.propose_many(study, number, count)
        proposals = [Proposal(params=params, arch=self._pool.arch(params)) for params in found]
        # Nothing new in its pool: the last architectures of a small band, if there are any, are found by random draws.
        return self._fill(proposals, study, number, count)


class _ArchScores:
    """Scores of architectures as inputs."""

    def __init__(self, pool: SpacePool, scores: Mapping[str, Callable[[Arch], float]]) -> None:
        self._pool, self._scores = pool, dict(scores)
        self.names = tuple(scores)
        self.estimates = frozenset(scores)

    def __call__(self, candidates: Sequence[Params]) -> Array:
        archs = [self._pool.arch(params) for params in candidates]
        return np.array([[score(arch) for score in self._scores.values()] for arch in archs])


class _DonorScores:
    """What earlier runs predict for candidates, as inputs: an estimate of the proxy score by each."""

    def __init__(self, pool: SpacePool, donors: Sequence[ArchDonor]) -> None:
        self._pool, self._donors = pool, list(donors)
        self.names = tuple(f"donor {place}" for place in range(len(donors)))
        self.estimates = frozenset(self.names)

    def __call__(self, candidates: Sequence[Params]) -> Array:
        archs = [self._pool.arch(params) for params in candidates]
        return np.column_stack([donor.predict(archs) for donor in self._donors])


def _estimates(
    pool: SpacePool, scores: Mapping[str, Callable[[Arch], float]], donors: Sequence[ArchDonor]
) -> Inputs | None:
    """What estimates the proxy score; None for nothing."""
    parts: tuple[Inputs | None, ...] = (
        _ArchScores(pool, scores) if scores else None,
        _DonorScores(pool, donors) if donors else None,
    )
    found = [part for part in parts if part is not None]
    return JoinedInputs(found) if len(found) > 1 else next(iter(found), None)


# Functions of the module, since a sampler can be pickled with them.


def _described_params(trial: FrozenTrial) -> Params:
    return dict(trial.system_attrs.get(DESCRIBED, {}))
