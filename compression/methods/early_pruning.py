"""Early pruning: score at initialisation by cross-entropy, prune once, train by any objective.

With ProsPr as criterion and a self-distillation objective this is the "simple combination" with which the EPSD paper
(Chen et al., AAAI 2024, arXiv 2402.00084) compares itself; with cross-entropy it is the criterion's own paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from compression import allocation
from compression.criteria import CriterionConfig, ProsPrConfig
from compression.objectives import CrossEntropy, CrossEntropyConfig, ObjectiveConfig
from compression.session import Session


@dataclass(frozen=True)
class EarlyPruning:
    """Prune at initialisation by a criterion under cross-entropy, then train by an objective."""

    criterion: CriterionConfig = field(default_factory=ProsPrConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    sparsity: float = 0.95
    """share of convolution and linear weights removed"""
    allow_empty: bool = False
    """accept layers of which nothing is left (sound where a shortcut goes round them)"""

    def __post_init__(self) -> None:
        allocation.check_sparsity(self.sparsity)

    @property
    def label(self) -> str:
        return f"{self.criterion.label} + {self.objective.label}"


def early_pruning(session: Session, config: EarlyPruning) -> nn.Module:
    """Score, prune, train."""
    model = session.model()
    scoring = CrossEntropy()
    batches = session.batches(scoring, config.criterion.num_batches(scoring))
    scores = session.stage("score", lambda: config.criterion.score(model, batches, scoring))
    masks = allocation.global_topk(scores, config.sparsity).check(config.sparsity, allow_empty=config.allow_empty)
    session.log(empty_layers=len(masks.empty_layers()))
    return session.train("train", model, config.objective.objective(), masks=masks)
