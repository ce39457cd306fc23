"""Iterative magnitude pruning: train, remove the smallest weights, train again, and so on.

Three ways to train again: rewind the weights to an early epoch (lottery ticket: Frankle & Carbin, ICLR 2019, arXiv
1803.03635; Frankle et al., ICML 2020, arXiv 1912.05671), rewind only the learning rate (Renda et al., ICLR 2020, arXiv
2003.02389), or keep the weights and restart the whole schedule (as Prune-then-Distill's code retrains its teachers).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import nn

from compression import allocation, criteria
from compression.config import searched
from compression.masks import Masks, prunable
from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropyConfig, ObjectiveConfig
from compression.session import Session, objective_of
from compression.spaces import Choices, Range


@dataclass(frozen=True)
class IterativeMagnitude(MethodConfig):
    """Rounds of pruning the smallest remaining weights and training again."""

    rounds: int = searched(4, Choices((2, 4, 7, 10, 13)))
    """number of rounds; 4 rounds of 20 % remove 59 %"""
    share: float = searched(0.2, Range(0.1, 0.4))
    """share of the remaining weights that each round removes"""
    rewind: Literal["weights", "learning_rate", "restart"] = "weights"
    """what is rewound before training again: weights and learning rate (lottery ticket), only the learning rate, or
    neither (restart: the whole schedule from its start, with the weights as they are)"""
    rewind_epoch: int = 0
    """epoch of the schedule to which weights or learning rate are rewound"""
    dense: Any = None
    """experiment of the network to prune (not with rewind weights, which trains its own); None: this experiment's own
    network, trained densely"""
    retraining: Any = None
    """training of each round with rewind restart; None: the experiment's own"""
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    allow_empty: bool = False
    """accept layers with no weight left (safe only where a shortcut bypasses them)"""

    options: ClassVar = {"distillation": "objective"}

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be 1 or more, not {self.rounds}; use method dense to train without pruning")
        if not 0 < self.share < 1:
            raise ValueError(f"share, the part of the weights removed in a round, must be in (0, 1), not {self.share}")
        if self.rewind_epoch < 0 or (self.rewind_epoch and self.rewind == "restart"):
            raise ValueError(f"rewind_epoch must be 0 or more, and 0 with rewind restart, not {self.rewind_epoch}")
        if self.rewind == "weights" and self.dense is not None:
            raise ValueError("rewind weights trains its own network (for an early epoch's weights): leave out dense")
        if self.rewind != "restart" and self.retraining is not None:
            raise ValueError(f"retraining needs rewind restart, not {self.rewind}")

    @property
    def sparsity(self) -> float:
        """Share of weights removed after the last round, without the rounding in each round."""
        return 1 - (1 - self.share) ** self.rounds

    @property
    def teachers(self) -> list[tuple[Any, Any]]:
        return [*super().teachers, *([] if self.rewind == "weights" else [(self.dense, None)])]

    def trainings(self, own: Any) -> list[Any]:
        return [self.retraining or own]

    @property
    def label(self) -> str:
        name = {"weights": "LTH", "learning_rate": "IMP, LR rewinding", "restart": "IMP, restart"}[self.rewind]
        return name if self.objective.label == "CE" else f"{name} ({self.objective.label})"

    @classmethod
    def at(cls, sparsity: float, **values: Any) -> Self:
        return cls(rounds=allocation.rounds_for_ratio(sparsity), **values)

    def run(self, session: Session) -> nn.Module:
        return iterative_magnitude(session, self)


def iterative_magnitude(session: Session, config: IterativeMagnitude) -> nn.Module:
    """Train; then `rounds` times: remove, rewind, train again."""
    if config.rewind_epoch >= session.epochs:
        raise ValueError(f"rewind_epoch {config.rewind_epoch} must be below the training's {session.epochs} epochs")
    model = session.model()
    objective = objective_of(session, config.objective)
    rest = range(config.rewind_epoch, session.epochs)
    again = None if config.rewind == "restart" else rest
    early = None
    if config.rewind == "weights":
        model = session.train("early", model, objective, epochs=range(config.rewind_epoch))
        early = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model = session.train("first", model, objective, epochs=rest)
    else:
        model.load_state_dict(session.teacher(config.dense).state_dict())
    masks = Masks.ones_like(prunable(model))
    for round in range(1, config.rounds + 1):
        masks = session.stage(f"prune{round}", lambda model=model, masks=masks: pruned(model, masks, config))
        if early is not None:
            model.load_state_dict(early)
        name = "train" if round == config.rounds else f"round{round}"
        model = session.train(name, model, objective, masks=masks, schedule=config.retraining, epochs=again)
    session.log(empty_layers=len(masks.empty_layers()))
    return model


def pruned(model: nn.Module, masks: Masks, config: IterativeMagnitude) -> Masks:
    """The masks without the smallest of the remaining weights.

    The number of weights is rounded as in the authors' code: up for rewinding, to nearest for a restart.
    """
    num_of = allocation.rounded_share if config.rewind == "restart" else allocation.share_rounded_up
    num = num_of(masks.num_kept, config.share)
    return allocation.remove_lowest(criteria.magnitude(model), masks, num).check_layers(allow_empty=config.allow_empty)
