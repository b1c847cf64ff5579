"""Architectures inside a band of MACs and parameters: counting them, drawing them, moving a proposal into the band, and the ends of a space's range."""

from archsearch.budget.band import Band
from archsearch.budget.inside import InBand
from archsearch.budget.moves import check_feasible, draw, in_band, mutate, propose, repair
from archsearch.budget.options import Params
from archsearch.budget.ranges import extremes

__all__ = ["Band", "InBand", "Params", "check_feasible", "draw", "extremes", "in_band", "mutate", "propose", "repair"]
