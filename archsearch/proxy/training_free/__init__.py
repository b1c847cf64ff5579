"""Scores that need no training: read off an untrained network in seconds. Baselines and features, never judges by themselves."""

from archsearch.proxy.training_free.az_nas import aggregate
from archsearch.proxy.training_free.scores import SCORES, scores

__all__ = ["SCORES", "aggregate", "scores"]
