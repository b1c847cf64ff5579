"""Scores of untrained networks, computed in seconds: baselines and features for samplers, never evidence of accuracy by themselves."""

from archsearch.proxy.training_free.az_nas import aggregate
from archsearch.proxy.training_free.scores import SCORES, scores

__all__ = ["SCORES", "aggregate", "scores"]
