"""Whole methods: a Session and a config -> a trained network. One file a paper."""

from typing import TypeAlias

from compression.methods.dense import Dense, dense
from compression.methods.early_pruning import EarlyPruning, early_pruning
from compression.methods.epsd import EPSD, epsd
from compression.methods.iterative_magnitude import IterativeMagnitude, iterative_magnitude
from compression.methods.pdd import PDD, pdd
from compression.methods.pretrained import Pretrained, pretrained
from compression.methods.prune_then_distill import PruneThenDistill, prune_then_distill

MethodConfig: TypeAlias = Dense | EarlyPruning | EPSD | IterativeMagnitude | PruneThenDistill | PDD | Pretrained
"""A frozen dataclass with `label` and `objective`; `sparsity` where weights are masked; `controls()` where a claim is
read off only beside other runs."""

METHODS = {
    Dense: dense,
    EarlyPruning: early_pruning,
    EPSD: epsd,
    IterativeMagnitude: iterative_magnitude,
    PruneThenDistill: prune_then_distill,
    PDD: pdd,
    Pretrained: pretrained,
}
"""Config class -> the function that carries it out."""

__all__ = [
    "EPSD",
    "METHODS",
    "PDD",
    "Dense",
    "EarlyPruning",
    "IterativeMagnitude",
    "MethodConfig",
    "Pretrained",
    "PruneThenDistill",
    "dense",
    "early_pruning",
    "epsd",
    "iterative_magnitude",
    "pdd",
    "pretrained",
    "prune_then_distill",
]
