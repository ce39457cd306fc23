"""Prune-then-Distill: Prune Your Model Before Distill It (Park & No, ECCV 2022, arXiv 2109.14960).

A dense teacher is pruned in rounds: each removes the smallest 20 % of its weights and retrains it fully. A dense and
narrower student learns from the pruned teacher's logits. Each of its layers has as many weights as are left in the
teacher's (see `compression.students`). The paper explains the gain by softer targets. So the entropy of both teachers'
outputs is recorded with every student, and label smoothing is one of the controls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from compression import students
from compression.config import ADDED, searched
from compression.masks import Masks, prunable
from compression.methods.base import MethodConfig
from compression.methods.iterative_magnitude import IterativeMagnitude
from compression.objectives import CrossEntropyConfig, KDConfig, LabelSmoothingConfig, ObjectiveConfig
from compression.objectives.base import check_positive
from compression.session import Session
from compression.spaces import Choices, LogRange, Range

Source = Literal["pruned", "dense", "none", "label_smoothing"]


@dataclass(frozen=True)
class PruneThenDistill(MethodConfig):
    """Prune a teacher, derive a smaller student from it, distil."""

    teacher: Any = None
    """experiment of the dense teacher; None: this experiment's own network, trained densely"""
    rounds: int = searched(4, Choices((2, 4, 7)))
    """rounds of pruning the teacher by 20 %: 2, 4 or 7 remove 36, 59 or 79 %"""
    retraining: Any = None
    """training of the teacher after each round; None: the teacher's own"""
    student: Literal["derived", "given"] = "derived"
    """derived: a narrower teacher with as many weights in each layer as pruning left; given: the experiment's model"""
    init: Literal["random", "inherit"] = "random"
    """initial weights of a derived student: random as in the paper, or channels of the pruned teacher"""
    source: Source = "pruned"
    """what the student learns from: the pruned teacher (the method) or, as controls, the dense teacher, labels only
    (none), or smoothed labels"""
    temperature: float = searched(10.0, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    alpha: float = searched(0.95, Range(0.1, 0.99))
    """weight of the distillation term; cross-entropy has 1 - alpha"""
    longer_teacher: Any = field(default=None, metadata=ADDED)
    """with source dense, a control: experiment of a dense teacher that is trained as long as the pruned one in all,
    from which the student learns; None: `teacher`"""

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, temperature=self.temperature)
        if self.student == "given" and self.init == "inherit":
            raise ValueError("init inherit uses channels of the teacher: it needs student derived, not given")
        if self.longer_teacher is not None and self.source != "dense":
            raise ValueError(f"longer_teacher needs source dense, not {self.source}")

    @property
    def pruning(self) -> IterativeMagnitude:
        """How the teacher is pruned."""
        return IterativeMagnitude(self.rounds, rewind="restart", dense=self.teacher, retraining=self.retraining)

    @property
    def same_model_as(self) -> Any:
        return self.teacher if self.student == "derived" else None

    @property
    def objective(self) -> ObjectiveConfig:
        """The student's objective."""
        if self.source == "none":
            return CrossEntropyConfig()
        if self.source == "label_smoothing":
            return LabelSmoothingConfig()
        return KDConfig(None, self.temperature, self.alpha)

    @property
    def label(self) -> str:
        name = {
            "pruned": "PtD",
            "dense": "PtD control: dense teacher",
            "none": "PtD control: no teacher",
            "label_smoothing": "PtD control: label smoothing",
        }[self.source]
        name += " trained longer" if self.longer_teacher is not None else ""
        inherited = ", inherited" if self.init == "inherit" else ""
        return f"{name} ({self.student} student{inherited}, teacher {self.pruning.sparsity:.0%} pruned)"

    @property
    def teachers(self) -> list[tuple[Any, Any]]:
        longer = [] if self.longer_teacher is None else [(self.longer_teacher, None)]
        return [(self.teacher, None), (self.teacher, self.pruning), *longer]

    def controls(self) -> list[PruneThenDistill]:
        """The same student with the other sources, for comparison."""
        others: tuple[Source, ...] = ("dense", "none", "label_smoothing")
        return [replace(self, source=source) for source in others] if self.source == "pruned" else []

    def run(self, session: Session) -> nn.Module:
        return prune_then_distill(session, self)


def prune_then_distill(session: Session, config: PruneThenDistill) -> nn.Module:
    """Train and prune the teacher, build the student, distil."""
    if config.student == "derived":  # a network from which no student can be derived is refused before any training
        model = session.model()
        students.plan(model, Masks.ones_like(prunable(model)))
    dense = session.teacher(config.teacher)
    pruned = session.teacher(config.teacher, method=config.pruning)
    student = build_student(session, config, pruned)
    for name, teacher in {"dense_teacher": dense, "pruned_teacher": pruned}.items():
        found = session.evaluate(teacher, "test")
        session.log(**{f"{name}/{key}": value for key, value in found.items()})
    if config.longer_teacher is not None:
        dense = session.teacher(config.longer_teacher)
    teachers = {"pruned": [pruned], "dense": [dense]}.get(config.source, [])
    return session.train("train", student, config.objective.objective(*teachers))


def build_student(session: Session, config: PruneThenDistill, pruned: nn.Module) -> nn.Module:
    """The student's network. The plan of a derived student is shown and stored."""
    if config.student == "given":
        return session.model()
    masks = Masks({name: weight.detach() != 0 for name, weight in prunable(pruned).items()})
    plan = session.stage("plan", lambda: students.plan(pruned, masks))
    session.note(students.describe(plan))
    spec = {key: value for key, value in plan["arch"].items() if key != "num_classes"}
    student = session.model(spec)
    if config.init == "inherit":
        students.inherit(student, pruned, masks)
    return student
