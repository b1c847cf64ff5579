"""Architectures inside a band of MACs and parameters: counting them, drawing them, moving a proposal into the band, and the ends of a space's range."""

from archsearch.space.budget.band import Band, extremes
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.moves import check_feasible, draw, in_band, mutate, propose, repair

__all__ = ["Band", "InBand", "Params", "check_feasible", "draw", "extremes", "in_band", "mutate", "propose", "repair"]
