"""What recipes let a person choose by name: method, objective, criterion and optimiser."""

from __future__ import annotations

from dataclasses import dataclass

from compression.choose import choose
from compression.criteria import CRITERIA
from compression.methods import EPSD, Dense, EarlyPruning
from compression.objectives import OBJECTIVES
from pipelines.optimizers import OFFERED, SGD, AdamW, TorchOptimizer

METHODS = {"dense": Dense, "early_pruning": EarlyPruning, "epsd": EPSD}


@dataclass(frozen=True)
class Choices:
    """The parts of a recipe that have alternatives; each alternative then has options of its own."""

    method: str = "epsd"
    """dense, early_pruning or epsd"""
    distillation: str | None = None
    """objective of the training: cs_kd, ps_kd, dlb, label_smoothing or cross_entropy; None: cross_entropy for dense,
    else cs_kd"""
    criterion: str | None = None
    """of early_pruning: prospr, snip, grasp, magnitude or random; None: prospr"""
    optimizer: str = "sgd"
    """sgd, adamw or another class of torch.optim"""
    smoke: bool = False
    """the whole path on real digits in less than a minute, without network"""

    def compress(self, sparsity: float) -> Dense | EarlyPruning | EPSD:
        """The method's config; `sparsity` where it prunes."""
        method = choose("method", self.method, METHODS)
        usual = "cross_entropy" if method is Dense else "cs_kd"
        objective = choose("distillation", self.distillation or usual, OBJECTIVES)()
        criterion = choose("criterion", self.criterion or "prospr", CRITERIA)()
        if self.criterion is not None and method is not EarlyPruning:
            raise ValueError(f"--criterion goes with --method early_pruning; {self.method} does not ask for one")
        if method is Dense:
            return Dense(objective=objective)
        if method is EPSD:
            return EPSD(distillation=objective, sparsity=sparsity)
        return EarlyPruning(criterion=criterion, objective=objective, sparsity=sparsity)

    def optimise(self, sgd: SGD) -> SGD | AdamW | TorchOptimizer:
        """The recipe's own SGD, or another optimiser with its defaults."""
        others = {name.lower(): TorchOptimizer(name) for name in OFFERED}
        return choose("optimizer", self.optimizer.lower(), {**others, "sgd": sgd, "adamw": AdamW()})
