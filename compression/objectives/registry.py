"""Every objective's config by name, and their union for whatever takes any of them."""

from __future__ import annotations

from typing import TypeAlias

from compression.objectives.cross_entropy import CrossEntropyConfig
from compression.objectives.cs_kd import CSKDConfig
from compression.objectives.dlb import DLBConfig
from compression.objectives.label_smoothing import LabelSmoothingConfig
from compression.objectives.ps_kd import PSKDConfig

ObjectiveConfig: TypeAlias = CrossEntropyConfig | LabelSmoothingConfig | CSKDConfig | PSKDConfig | DLBConfig
"""A frozen dataclass with `label`, its name in tables, and `objective()`, which makes the objective."""

OBJECTIVES = {
    "cross_entropy": CrossEntropyConfig,
    "label_smoothing": LabelSmoothingConfig,
    "cs_kd": CSKDConfig,
    "ps_kd": PSKDConfig,
    "dlb": DLBConfig,
}
