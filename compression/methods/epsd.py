"""EPSD: early pruning with self-distillation (Chen et al., AAAI 2024, arXiv 2402.00084).

The paper replaces the cross-entropy of early pruning by the self-distillation loss, so that pruning keeps the weights
that self-distillation needs. The pruned network is then trained with the same loss. The paper leaves some details open:
here the score is ProsPr's meta-gradient (arXiv 2202.08132) of this loss, and each such decision is a config value.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from compression import allocation, criteria
from compression.config import added, searched
from compression.criteria.chunks import check_num_images
from compression.criteria.prospr import check_inner
from compression.masks import shuffled
from compression.methods.base import SPARSITIES, MethodConfig, note_ties
from compression.objectives import CrossEntropyConfig, CSKDConfig, ObjectiveConfig
from compression.objectives.config import TeacherObjectiveConfig
from compression.session import Session, objective_of
from compression.spaces import IntRange, LogRange

INNER_STEPS = 3
"""As in ProsPr's code; the label names another number."""


@dataclass(frozen=True)
class EPSD(MethodConfig):
    """Prune at initialisation with the self-distillation loss, then train with it."""

    distillation: ObjectiveConfig = field(default_factory=CSKDConfig)
    sparsity: float = searched(0.95, SPARSITIES)
    """share of convolution and linear weights removed"""
    inner_steps: int = searched(INNER_STEPS, IntRange(0, 5))
    """gradient steps before the sensitivity is computed"""
    inner_lr: float = searched(0.1, LogRange(0.01, 1.0))
    """learning rate of those steps"""
    first_order: bool = False
    """omit second derivatives: less memory, a different score"""
    allow_empty: bool = False
    """accept layers with no weight left (safe only where a shortcut bypasses them)"""
    scoring_batch_size: int | None = added(None)
    """images in each scored batch; None: the training's batch size"""
    chunk_size: int | None = added(None)
    """with first_order, images scored at once, to save memory; None: a whole batch"""
    shuffle: bool = added(False)
    """a control: keep as many weights in each layer, but at random places"""
    trained_by: Literal["distillation", "cross_entropy"] = added("distillation")
    """cross_entropy, a control: only the masks come from self-distillation"""

    options: ClassVar = {"distillation": "distillation"}

    def __post_init__(self) -> None:
        allocation.check_sparsity(self.sparsity)
        check_inner(self.inner_steps, self.inner_lr, self.first_order, self.chunk_size)
        check_num_images(scoring_batch_size=self.scoring_batch_size)
        if self.trained_by == "cross_entropy" and isinstance(self.distillation, TeacherObjectiveConfig):
            raise ValueError("trained_by cross_entropy needs a distillation without teacher: use --distillation cs_kd")

    @property
    def objective(self) -> ObjectiveConfig:
        return self.distillation if self.trained_by == "distillation" else CrossEntropyConfig()

    @property
    def label(self) -> str:
        others = [f"{self.inner_steps} inner steps"] if self.inner_steps != INNER_STEPS else []
        others += [text for text, own in {"first order": self.first_order, "shuffled": self.shuffle}.items() if own]
        name = f"EPSD ({', '.join([self.distillation.label, *others])})"
        return name if self.trained_by == "distillation" else f"{name} masks + CE"

    def run(self, session: Session) -> nn.Module:
        return epsd(session, self)


def epsd(session: Session, config: EPSD) -> nn.Module:
    """Score with the self-distillation loss, prune once, train with the same loss (or as a control asks)."""
    model = session.model()
    objective = objective_of(session, config.distillation)
    batches = session.batches(objective, objective.scoring_batches(config.inner_steps), config.scoring_batch_size)
    inner = (config.inner_steps, config.inner_lr, config.first_order, config.chunk_size)
    scores = session.stage("score", lambda: criteria.prospr(model, batches, objective, *inner))
    masks = allocation.global_topk(scores, config.sparsity)
    allocation.check_pruned(masks, scores, config.sparsity, allow_empty=config.allow_empty)
    note_ties(session, masks, scores)
    session.log(empty_layers=len(masks.empty_layers()))
    if config.shuffle:
        masks = shuffled(masks, session.seed)
    if config.trained_by == "cross_entropy":
        objective = CrossEntropyConfig().objective()
    return session.train("train", model, objective, masks=masks)
