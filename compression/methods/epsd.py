"""EPSD: early pruning with self-distillation (Chen et al., AAAI 2024, arXiv 2402.00084).

The paper swaps the cross-entropy of early pruning for the self-distillation loss, so that the weights kept are those
that self-distillation can use, and then trains what is left by the same loss. Its full text does not settle every
detail; here the score is ProsPr's meta-gradient (arXiv 2202.08132) of that loss. Each such reading is a config value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from compression import allocation, criteria
from compression.criteria.prospr import check_inner
from compression.objectives import CSKDConfig, ObjectiveConfig
from compression.session import Session


@dataclass(frozen=True)
class EPSD:
    """Prune at initialisation by the self-distillation loss, then train by it."""

    distillation: ObjectiveConfig = field(default_factory=CSKDConfig)
    sparsity: float = 0.95
    """share of convolution and linear weights removed"""
    inner_steps: int = 3
    """gradient steps before the sensitivity is taken"""
    inner_lr: float = 0.1
    """learning rate of those steps"""
    first_order: bool = False
    """leave out second derivatives: less memory, another score"""
    allow_empty: bool = False
    """accept layers of which nothing is left (sound where a shortcut goes round them)"""

    def __post_init__(self) -> None:
        allocation.check_sparsity(self.sparsity)
        check_inner(self.inner_steps, self.inner_lr)

    @property
    def objective(self) -> ObjectiveConfig:
        """What it trains by, under the name that every method has for it."""
        return self.distillation

    @property
    def label(self) -> str:
        return f"EPSD ({self.distillation.label})"


def epsd(session: Session, config: EPSD) -> nn.Module:
    """Score by the self-distillation loss, prune once, train by the same loss."""
    model = session.model()
    objective = config.distillation.objective()
    batches = session.batches(objective, objective.scoring_batches(config.inner_steps))
    scores = session.stage(
        "score",
        lambda: criteria.prospr(
            model, batches, objective, config.inner_steps, config.inner_lr, first_order=config.first_order
        ),
    )
    masks = allocation.global_topk(scores, config.sparsity).check(config.sparsity, allow_empty=config.allow_empty)
    session.log(empty_layers=len(masks.empty_layers()))
    return session.train("train", model, objective, masks=masks)
