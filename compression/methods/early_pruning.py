"""Early pruning: score at initialisation with cross-entropy, prune once or in rounds, train with any objective.

With ProsPr as criterion and a self-distillation objective, this is the "simple combination" that the EPSD paper (Chen
et al., AAAI 2024, arXiv 2402.00084) compares with. With cross-entropy, it is the method of the criterion's paper.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import nn

from compression import allocation
from compression.choose import choose
from compression.config import added, searched
from compression.criteria import CriterionConfig, ProsPrConfig
from compression.criteria.chunks import check_num_images
from compression.methods.base import SPARSITIES, MethodConfig, note_ties
from compression.objectives import CrossEntropy, CrossEntropyConfig, CSKDConfig, ObjectiveConfig
from compression.session import Session, objective_of
from compression.spaces import Choices


@dataclass(frozen=True)
class EarlyPruning(MethodConfig):
    """Prune at initialisation by a criterion with cross-entropy, then train with an objective."""

    criterion: CriterionConfig = field(default_factory=ProsPrConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    sparsity: float = searched(0.95, SPARSITIES)
    """share of convolution and linear weights removed"""
    allow_empty: bool = False
    """accept layers with no weight left (safe only where a shortcut bypasses them)"""
    allocation: Literal["global", "per_layer", "erk"] = added("global", Choices(("global", "per_layer", "erk")))
    """how many weights each layer keeps: by the scores over all layers, the same share of each layer, or
    Erdos-Renyi-Kernel densities"""
    rounds: int | None = added(None)
    """rounds of scoring and pruning; None: the criterion's usual number (100 for SynFlow, 1 for SNIP...)"""
    schedule: Literal["exponential", "linear"] = added("exponential")
    """how the density decreases over the rounds: exponential or linear"""
    scoring_batch_size: int | None = added(None)
    """images in each scored batch; None: the training's batch size"""

    options: ClassVar = {"distillation": "objective", "criterion": "criterion"}

    def __post_init__(self) -> None:
        allocation.check_sparsity(self.sparsity)
        allocation.check_rounds(self.num_rounds)
        choose("allocation", self.allocation, allocation.ALLOCATIONS)
        choose("schedule", self.schedule, allocation.SCHEDULES)
        check_num_images(scoring_batch_size=self.scoring_batch_size)

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
    allocate, rounds, given = allocation.ALLOCATIONS[config.allocation], config.num_rounds, (model, batches, scoring)
    if rounds == 1:
        scores = session.stage("score", lambda: criterion.score(*given))
        masks = allocate(scores, config.sparsity)
        allocation.check_pruned(masks, scores, config.sparsity, allow_empty=config.allow_empty)
        if config.allocation == "global":
            note_ties(session, masks, scores)
    else:
        arguments = (criterion.score, config.sparsity, rounds, *given, config.schedule, allocate, config.allow_empty)
        masks = session.stage("score", lambda: allocation.iterate(*arguments))
    masks.check(config.sparsity, allow_empty=config.allow_empty)
    session.log(empty_layers=len(masks.empty_layers()))
    return session.train("train", model, objective_of(session, config.objective), masks=masks)
