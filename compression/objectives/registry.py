"""Every objective's config by name, and their union for whatever takes any of them."""

from __future__ import annotations

from typing import TypeAlias

from compression.objectives.cross_entropy import CrossEntropyConfig
from compression.objectives.cs_kd import CSKDConfig
from compression.objectives.dlb import DLBConfig
from compression.objectives.kd import KDConfig
from compression.objectives.label_smoothing import LabelSmoothingConfig
from compression.objectives.ps_kd import PSKDConfig
from compression.objectives.tf_kd import TfKDRegConfig, TfKDSelfConfig

ObjectiveConfig: TypeAlias = (
    CrossEntropyConfig
    | LabelSmoothingConfig
    | KDConfig
    | CSKDConfig
    | PSKDConfig
    | DLBConfig
    | TfKDSelfConfig
    | TfKDRegConfig
)
"""A frozen dataclass with `label`, its name in tables, and `objective()`, which makes the objective; one that has a
field `teacher` makes it of the trained teacher: `objective(teacher)`."""

OBJECTIVES = {
    "cross_entropy": CrossEntropyConfig,
    "label_smoothing": LabelSmoothingConfig,
    "kd": KDConfig,
    "cs_kd": CSKDConfig,
    "ps_kd": PSKDConfig,
    "dlb": DLBConfig,
    "tf_kd_self": TfKDSelfConfig,
    "tf_kd_reg": TfKDRegConfig,
}
