"""PDD: pruning during distillation (Dan et al., Cognitive Computation 16, 2024, doi 10.1007/s12559-024-10350-9).

While a student learns from a teacher, a gate on each of its channels learns whether the channel is needed. Channels
with closed gates are then removed, and the small network is fine-tuned. docs/methods.md lists our decisions where the
authors' code differs from the paper or has errors: the true KL divergence, one set of gates for each dependency group,
gates that start open and have no weight decay, an optional budget, and all tensors of the student kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from compression import channels, compaction, gates
from compression.batch import Batch
from compression.config import searched
from compression.gates import CostName, Gates
from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropy, CrossEntropyConfig, KDConfig, Objective, ObjectiveConfig
from compression.objectives.base import Model, check_positive
from compression.session import Session
from compression.spaces import Choices, LogRange, Range


@dataclass(frozen=True)
class PDD(MethodConfig):
    """Learn from a teacher and learn which channels to keep; remove the others; fine-tune."""

    teacher: Any = None
    """experiment of the teacher; None: this experiment's own network, trained densely"""
    distill: bool = True
    """learn from the teacher; off: the control without a teacher"""
    reduction: float | None = searched(0.3, Range(0.2, 0.8))
    """share of the cost to remove, met within 2 %; None: as the gates have learned"""
    reduce: CostName = "macs"
    """the cost to reduce"""
    budget_weight: float = searched(10.0, LogRange(1.0, 100.0))
    """weight of the squared distance between cost and budget, both as shares of the whole network's cost"""
    temperature: float = searched(3.0, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    alpha: float = searched(0.4, Range(0.1, 0.95))
    """weight of the distillation term; cross-entropy has 1 - alpha"""
    divergence: Literal["kl", "authors"] = "kl"
    """the KL divergence, or what the authors' code computes instead with recent PyTorch"""
    gate_start: Literal["open", "random"] = "open"
    """open: all gates at 0.5; random: around 0 as in the authors' code, with half of the gates closed"""
    gate_lr: float = searched(5.0, LogRange(0.5, 20.0))
    """learning rate of the gates, as a multiple of that of the weights"""
    gate_decay: bool = False
    """apply weight decay to the gates, as in the authors' code"""
    gating: Any = None
    """training with gates; None: the experiment's training, which is also used for fine-tuning"""
    distill_finetune: bool = searched(False, Choices((False, True)))
    """fine-tune with the teacher; the authors fine-tune on labels only"""

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature, budget_weight=self.budget_weight, gate_lr=self.gate_lr)
        if self.reduction is not None and not 0 < self.reduction < 1:
            raise ValueError(f"reduction, a share of {self.reduce} to remove, must be in (0, 1), not {self.reduction}")

    @property
    def objective(self) -> ObjectiveConfig:
        """The objective while the student has gates."""
        if not self.distill:
            return CrossEntropyConfig()
        return KDConfig(None, self.temperature, self.alpha, self.divergence)

    @property
    def label(self) -> str:
        name = "PDD" if self.distill else "PDD control: no teacher"
        return name if self.reduction is None else f"{name}, {self.reduction:.4g} of {self.reduce} removed"

    @property
    def teachers(self) -> list[tuple[Any, Any]]:
        return [(self.teacher, None)] if self.distill else []

    def trainings(self, own: Any) -> list[Any]:
        return [self.gating or own, own]

    def controls(self) -> list[PDD]:
        """The same without a teacher."""
        return [replace(self, distill=False)] if self.distill else []

    def run(self, session: Session) -> nn.Module:
        return pdd(session, self)


class Budgeted(Objective):
    """Another objective plus `weight` times the squared distance between a gated network's cost and its budget.

    Both costs are shares of the whole network's cost, so that the same weight fits every network.
    """

    def __init__(self, objective: Objective, gated: Gates, of: CostName, target: float, weight: float) -> None:
        self._inner, self._gates, self._of = objective, gated, of
        self._target, self._weight = target, weight
        self._whole = gated.reachable(of)[1]
        self.needs, self.replicated = objective.needs, objective.replicated
        self.setup, self.begin_epoch, self.sync = objective.setup, objective.begin_epoch, objective.sync
        self.state_dict, self.load_state_dict = objective.state_dict, objective.load_state_dict

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        away = (getattr(self._gates.costs(), self._of) - self._target) / self._whole
        return {**self._inner(model, batch), "budget": self._weight * away.square()}


def pdd(session: Session, config: PDD) -> nn.Module:
    """Attach gates, train, remove channels, fine-tune."""
    model, shape = session.model(), session.info.input_shape
    groups = channels.channel_groups(model, shape)
    gated = gates.attach(model, groups, shape, start=config.gate_start, seed=session.seed)
    target = budget(gated, config)
    learning, tuning = objectives(session, config)
    if target is not None:
        learning = Budgeted(learning, gated, config.reduce, target, config.budget_weight)
    own_group = parameter_groups(model, config)
    model = session.train("gate", model, learning, schedule=config.gating, param_groups=own_group)
    moved = 0 if target is None else gates.project(gated, config.reduce, target)
    session.log(gates_moved=moved, open_gates=sum(gated.num_open(group) for group in gated.groups))
    session.note(f"channels kept: {gated.describe()}")
    return session.train("train", compaction.compact(model, shape), tuning)


def budget(gated: Gates, config: PDD) -> float | None:
    """The cost to reach, checked before training; None: any cost."""
    if config.reduction is None:
        return None
    target = (1 - config.reduction) * gated.reachable(config.reduce)[1]
    gated.check_target(config.reduce, target)
    return target


def objectives(session: Session, config: PDD) -> tuple[Objective, Objective]:
    """The objectives of the training with gates and of the fine-tuning."""
    labels = CrossEntropy()
    if not config.distill:
        return labels, labels
    # Each stage has its own objective with the same teacher.
    teacher = session.teacher(config.teacher)
    distil = config.objective.objective
    return distil(teacher), distil(teacher) if config.distill_finetune else labels


def parameter_groups(model: nn.Module, config: PDD) -> list[dict[str, Any]]:
    """Two groups: the weights, and the gates with their own learning rate and without weight decay."""
    own = gates.gate_parameters(model)
    known = {id(parameter) for parameter in own}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in known]
    decay = {} if config.gate_decay else {"weight_decay": 0.0}
    return [{"params": weights}, {"params": own, "lr_scale": config.gate_lr, **decay}]
