"""Architectures inside a band of MACs and parameters: count them, draw them, find the best, move a proposal into the band, find the ends of a space's range."""

from archsearch.space.budget.band import Band, Bounds, extremes
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.moves import cached_in_band, check_feasible, draw, mutate, propose, repair
from archsearch.space.budget.scores import Score, Scored

__all__ = [
    "Band",
    "Bounds",
    "InBand",
    "Params",
    "Score",
    "Scored",
    "cached_in_band",
    "check_feasible",
    "draw",
    "extremes",
    "mutate",
    "propose",
    "repair",
]
