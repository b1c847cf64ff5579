"""Samplers for Optuna: one that knows the costs of its candidates beforehand, for any study, and those of a run, which stay inside its band."""

from archsearch.samplers.base import with_changed
from archsearch.samplers.donor_model import FEWEST_SCORES, ArchDonor, DonorModel
from archsearch.samplers.in_band import InBandSampler, Proposal, always_asked
from archsearch.samplers.inputs import Inputs
from archsearch.samplers.known_cost import KnownCostSampler
from archsearch.samplers.make import KNOWN_COST, SAMPLERS, PredictThroughput, check_sampler, make_sampler
from archsearch.samplers.observations import CURVE, MEASURED, STANDARD_ERRORS
from archsearch.samplers.pool import Pool, TablePool
from archsearch.samplers.space_pool import DESCRIBED
from archsearch.space import params_in_space

__all__ = [
    "CURVE",
    "DESCRIBED",
    "FEWEST_SCORES",
    "KNOWN_COST",
    "MEASURED",
    "SAMPLERS",
    "STANDARD_ERRORS",
    "ArchDonor",
    "DonorModel",
    "InBandSampler",
    "Inputs",
    "KnownCostSampler",
    "Pool",
    "PredictThroughput",
    "Proposal",
    "TablePool",
    "always_asked",
    "check_sampler",
    "make_sampler",
    "params_in_space",
    "with_changed",
]
