"""Architectures inside a band of MACs and parameters: count them, draw them, find the best, move a proposal into the band, find the ends of a space's range."""

from archsearch.space.budget.band import Band, Bounds, extremes
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.moves import (
    Change,
    cached_in_band,
    check_feasible,
    draw,
    find_params,
    mutate,
    params_in_space,
    propose,
    repair,
    single_changes,
)
from archsearch.space.budget.scores import Score, Scored

__all__ = [
    "Band",
    "Bounds",
    "Change",
    "InBand",
    "Params",
    "Score",
    "Scored",
    "cached_in_band",
    "check_feasible",
    "draw",
    "extremes",
    "find_params",
    "mutate",
    "params_in_space",
    "propose",
    "repair",
    "single_changes",
]
