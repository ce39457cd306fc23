"""Early pruning: score at initialisation by cross-entropy, prune at once or in rounds, train by any objective.

With ProsPr as criterion and a self-distillation objective this is the "simple combination" with which the EPSD paper
(Chen et al., AAAI 2024, arXiv 2402.00084) compares itself; with cross-entropy it is the criterion's own paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import nn

from compression import allocation
from compression.choose import choose
from compression.config import added
from compression.criteria import CriterionConfig, ProsPrConfig
from compression.criteria.chunks import check_scoring_batch_size
from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropy, CrossEntropyConfig, CSKDConfig, ObjectiveConfig
from compression.session import Session, objective_of


@dataclass(frozen=True)
class EarlyPruning(MethodConfig):
    """Prune at initialisation by a criterion under cross-entropy, then train by an objective."""

    criterion: CriterionConfig = field(default_factory=ProsPrConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    sparsity: float = 0.95
    """share of convolution and linear weights removed"""
    allow_empty: bool = False
    """accept layers of which nothing is left (sound where a shortcut goes round them)"""
    allocation: Literal["global", "per_layer", "erk"] = added("global")
    """which layers give the weights removed: those with the lowest scores, all the same share, or by
    Erdos-Renyi-Kernel densities"""
    rounds: int | None = added(None)
    """of scoring and pruning a little more; None: as many as the criterion's own (100 for SynFlow, 1 for SNIP...)"""
    schedule: Literal["exponential", "linear"] = added("exponential")
    """how the density falls over several rounds: exponential or linear"""
    scoring_batch_size: int | None = added(None)
    """images in each batch that is scored; None: the training's batch size"""

    options: ClassVar = {"distillation": "objective", "criterion": "criterion"}

    def __post_init__(self) -> None:
        allocation.check_sparsity(self.sparsity)
        allocation.check_rounds(self.num_rounds)
        choose("allocation", self.allocation, allocation.ALLOCATIONS)
        choose("schedule", self.schedule, allocation.SCHEDULES)
        check_scoring_batch_size(self.scoring_batch_size)

    @property
    def num_rounds(self) -> int:
        return self.criterion.rounds if self.rounds is None else self.rounds

    @property
    def label(self) -> str:
        others = [self.allocation] if self.allocation != "global" else []
        if self.num_rounds != self.criterion.rounds:
            others.append(f"{self.num_rounds} rounds")
        if self.num_rounds > 1 and self.schedule != "exponential":
            others.append(self.schedule)
        criterion = f"{self.criterion.label} ({', '.join(others)})" if others else self.criterion.label
        return f"{criterion} + {self.objective.label}"

    @classmethod
    def at(cls, sparsity: float, **values: Any) -> Self:
        return super().at(sparsity, **{"objective": CSKDConfig(), **values})

    def run(self, session: Session) -> nn.Module:
        return early_pruning(session, self)


def early_pruning(session: Session, config: EarlyPruning) -> nn.Module:
    """Score, prune, train."""
    model, scoring, criterion = session.model(), CrossEntropy(), config.criterion
    batches = session.batches(scoring, criterion.num_batches(scoring), config.scoring_batch_size)
    allocate = allocation.ALLOCATIONS[config.allocation]
    if config.num_rounds == 1:
        scores = session.stage("score", lambda: criterion.score(model, batches, scoring))
        masks = allocate(scores, config.sparsity)
    else:
        masks = session.stage(
            "score",
            lambda: allocation.iterate(
                criterion.score,
                config.sparsity,
                config.num_rounds,
                model,
                batches,
                scoring,
                config.schedule,
                allocate,
            ),
        )
    masks.check(config.sparsity, allow_empty=config.allow_empty)
    session.log(empty_layers=len(masks.empty_layers()))
    return session.train("train", model, objective_of(session, config.objective), masks=masks)
