"""Samplers: one for architectures whose costs are known beforehand, usable with any Optuna study, and a run's, which stay inside its band."""

from archsearch.samplers.in_band import InBandSampler, Proposal, always_asked
from archsearch.samplers.known_cost import KnownCostSampler
from archsearch.samplers.make import SAMPLERS, make_sampler
from archsearch.samplers.observations import CURVE, MEASURED
from archsearch.samplers.pool import Pool, TablePool
from archsearch.samplers.rerank import FEATURES
from archsearch.samplers.space_pool import DESCRIBED, described

__all__ = [
    "CURVE",
    "DESCRIBED",
    "FEATURES",
    "MEASURED",
    "SAMPLERS",
    "InBandSampler",
    "KnownCostSampler",
    "Pool",
    "Proposal",
    "TablePool",
    "always_asked",
    "described",
    "make_sampler",
]
