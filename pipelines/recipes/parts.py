"""What recipes let a person choose by name: method, networks, objective, criterion and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compression.allocation import rounds_for_ratio
from compression.choose import choose
from compression.criteria import CRITERIA
from compression.methods import (
    EPSD,
    PDD,
    Dense,
    EarlyPruning,
    IterativeMagnitude,
    MethodConfig,
    Pretrained,
    PruneThenDistill,
)
from compression.objectives import OBJECTIVES
from pipelines.experiment import Experiment
from pipelines.optimizers import OFFERED, SGD, AdamW, TorchOptimizer

METHODS = {
    "dense": Dense,
    "early_pruning": EarlyPruning,
    "epsd": EPSD,
    "iterative_magnitude": IterativeMagnitude,
    "prune_then_distill": PruneThenDistill,
    "pdd": PDD,
    "pretrained": Pretrained,
}

TRAINED_BY = {Dense: "cross_entropy", EarlyPruning: "cs_kd", EPSD: "cs_kd", IterativeMagnitude: "cross_entropy"}
"""The usual objective of the methods that let it be chosen."""


@dataclass(frozen=True)
class Choices:
    """The parts of a recipe that have alternatives; each alternative then has options of its own."""

    method: str | None = None
    """dense, early_pruning, epsd, iterative_magnitude, prune_then_distill, pdd or pretrained; None: the recipe's own"""
    distillation: str | None = None
    """objective of the training: cs_kd, ps_kd, dlb, kd, tf_kd_self, tf_kd_reg, label_smoothing or cross_entropy; None:
    cross_entropy for dense and iterative_magnitude, else cs_kd"""
    criterion: str | None = None
    """of early_pruning: prospr, snip, grasp, synflow, force, iter_snip, magnitude or random; None: prospr"""
    teacher: str | None = None
    """network of the teacher, trained like the student, of kd, prune_then_distill and pdd; None: the recipe's own"""
    student: str | None = None
    """network of the student in recipes of prune_then_distill (there also derived: what the pruned teacher implies)
    and pdd; None: the recipe's own"""
    optimizer: str = "sgd"
    """sgd, adamw or another class of torch.optim"""
    schedule: str | None = None
    """of ImageNet's recipes: standard, ffcv16, ffcv40, ffcv88, and those with _resnet18; None: standard"""
    smoke: bool = False
    """the whole path on real digits in less than a minute, without network"""

    def compress(self, sparsity: float) -> MethodConfig:
        """The method's config; `sparsity` where it prunes weights. For recipes that take any method: EPSD's."""
        name = self.method or "epsd"
        method = choose("method", name, METHODS)
        if self.student:
            raise ValueError("--student goes with the recipes of prune_then_distill and pdd; here it is --model")
        if self.criterion is not None and method is not EarlyPruning:
            raise ValueError(f"--criterion goes with --method early_pruning; {name} does not ask for one")
        if self.distillation is not None and method not in TRAINED_BY:
            raise ValueError(f"--distillation does not go with --method {name}, which says itself what it trains by")
        objective = choose("distillation", self.distillation or TRAINED_BY.get(method, "cs_kd"), OBJECTIVES)()
        if self.teacher and (method not in TRAINED_BY or not hasattr(objective, "teacher")):
            raise ValueError("--teacher goes with --distillation kd, or with the recipes of prune_then_distill and pdd")
        if method is Dense:
            return Dense(objective=objective)
        if method is EPSD:
            return EPSD(distillation=objective, sparsity=sparsity)
        if method is EarlyPruning:
            criterion = choose("criterion", self.criterion or "prospr", CRITERIA)()
            return EarlyPruning(criterion=criterion, objective=objective, sparsity=sparsity)
        if method is IterativeMagnitude:
            return IterativeMagnitude(rounds=rounds_for_ratio(sparsity), objective=objective)
        return method()

    def taught(self, experiment: Experiment) -> Experiment:
        """The experiment, with the chosen network, trained densely in the same way, as the teacher of its objective."""
        if self.teacher is None:
            return experiment
        teacher = replace(experiment, method=Dense(), model=self.teacher)
        objective = replace(experiment.method.objective, teacher=teacher)  # pyright: ignore[reportCallIssue]
        name = "distillation" if isinstance(experiment.method, EPSD) else "objective"
        return replace(experiment, method=replace(experiment.method, **{name: objective}))

    def only(self, own: str) -> None:
        """ValueError for choices that mean nothing to a recipe of the one method `own`."""
        if self.method not in (None, own):
            raise ValueError(f"this recipe is one of {own}; for --method {self.method} take another recipe")
        if self.distillation or self.criterion:
            raise ValueError(f"--distillation and --criterion mean nothing to {own}; its options begin with --method.")

    def refuse_schedule(self) -> None:
        """ValueError in recipes that have one schedule only."""
        if self.schedule is not None:
            raise ValueError("--schedule goes with ImageNet's recipes; here set --training.epochs and its like")

    def optimise(self, sgd: SGD) -> SGD | AdamW | TorchOptimizer:
        """The recipe's own SGD, or another optimiser with its defaults."""
        others = {name.lower(): TorchOptimizer(name) for name in OFFERED}
        return choose("optimizer", self.optimizer.lower(), {**others, "sgd": sgd, "adamw": AdamW()})
