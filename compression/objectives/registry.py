"""Every objective by name."""

from __future__ import annotations

from compression.objectives.config import ObjectiveConfig
from compression.objectives.cross_entropy import CrossEntropyConfig
from compression.objectives.cs_kd import CSKDConfig
from compression.objectives.dlb import DLBConfig
from compression.objectives.kd import KDConfig
from compression.objectives.label_smoothing import LabelSmoothingConfig
from compression.objectives.ps_kd import PSKDConfig
from compression.objectives.tf_kd import TfKDRegConfig, TfKDSelfConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "cross_entropy": CrossEntropyConfig,
    "label_smoothing": LabelSmoothingConfig,
    "kd": KDConfig,
    "cs_kd": CSKDConfig,
    "ps_kd": PSKDConfig,
    "dlb": DLBConfig,
    "tf_kd_self": TfKDSelfConfig,
    "tf_kd_reg": TfKDRegConfig,
}
