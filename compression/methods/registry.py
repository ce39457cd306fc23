"""Every method by name."""

from compression.methods.base import MethodConfig
from compression.methods.dense import Dense
from compression.methods.early_pruning import EarlyPruning
from compression.methods.epsd import EPSD
from compression.methods.iterative_magnitude import IterativeMagnitude
from compression.methods.pdd import PDD
from compression.methods.pretrained import Pretrained
from compression.methods.prune_then_distill import PruneThenDistill

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
