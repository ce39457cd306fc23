"""Methods: a Session and a config -> a trained network. One file for each paper."""

from compression.methods.base import MethodConfig
from compression.methods.dense import Dense, dense
from compression.methods.early_pruning import EarlyPruning, early_pruning
from compression.methods.epsd import EPSD, epsd
from compression.methods.iterative_magnitude import IterativeMagnitude, iterative_magnitude
from compression.methods.pdd import PDD, pdd
from compression.methods.pretrained import Pretrained, pretrained
from compression.methods.prune_then_distill import PruneThenDistill, prune_then_distill
from compression.methods.registry import METHODS, name_of

# fmt: off
__all__ = [
    "EPSD", "METHODS", "PDD", "Dense", "EarlyPruning", "IterativeMagnitude", "MethodConfig", "Pretrained",
    "PruneThenDistill", "dense", "early_pruning", "epsd", "iterative_magnitude", "name_of", "pdd", "pretrained",
    "prune_then_distill",
]
