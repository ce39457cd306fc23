"""Methods: a Session and a config -> a trained network. One file for each paper."""

from compression.methods.base import MethodConfig
from compression.methods.dense import Dense, dense
from compression.methods.early_pruning import EarlyPruning, early_pruning
from compression.methods.epsd import EPSD, epsd
from compression.methods.iterative_magnitude import IterativeMagnitude, iterative_magnitude
from compression.methods.pdd import PDD, pdd
from compression.methods.pretrained import Pretrained, pretrained
from compression.methods.prune_then_distill import PruneThenDistill, prune_then_distill

METHODS: dict[str, type[MethodConfig]] = {
    "dense": Dense,
    "early_pruning": EarlyPruning,
    "epsd": EPSD,
    "iterative_magnitude": IterativeMagnitude,
    "prune_then_distill": PruneThenDistill,
    "pdd": PDD,
    "pretrained": Pretrained,
}


def name_of(method: MethodConfig) -> str:
    """The name of a config's method."""
    return next(name for name, config in METHODS.items() if config is type(method))
