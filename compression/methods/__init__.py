"""Whole methods: a Session and a config -> a trained network. One file a paper."""

from compression.methods.dense import Dense, dense
from compression.methods.early_pruning import EarlyPruning, early_pruning
from compression.methods.epsd import EPSD, epsd

METHODS = {Dense: dense, EarlyPruning: early_pruning, EPSD: epsd}
"""Config class -> the function that carries it out."""

__all__ = ["EPSD", "METHODS", "Dense", "EarlyPruning", "dense", "early_pruning", "epsd"]
