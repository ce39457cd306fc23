"""What the configs of objectives share."""

from dataclasses import dataclass
from typing import Any, ClassVar


class ObjectiveConfig:
    """The settings of an objective: each subclass is a frozen dataclass."""

    label: ClassVar[str]
    """name in tables"""
    objective: Any
    """function () -> Objective, or of the trained teacher for a `TeacherObjectiveConfig`"""
    cache: bool = False
    """whether the objective stores the teacher's answer to each training image"""


@dataclass(frozen=True)
class TeacherObjectiveConfig(ObjectiveConfig):
    """The settings of an objective that learns from a teacher; `objective` takes the trained network."""

    teacher: Any = None
    """experiment that trains the teacher; None: this experiment's own, by the method dense"""
