"""What a network is trained on: named losses of a model and a batch."""

from compression.objectives.base import Objective
from compression.objectives.cross_entropy import CrossEntropy, CrossEntropyConfig
from compression.objectives.cs_kd import CSKD, CSKDConfig
from compression.objectives.dlb import DLB, DLBConfig
from compression.objectives.label_smoothing import LabelSmoothing, LabelSmoothingConfig
from compression.objectives.ps_kd import PSKD, PSKDConfig
from compression.objectives.registry import OBJECTIVES, ObjectiveConfig

__all__ = [
    "CSKD",
    "DLB",
    "OBJECTIVES",
    "PSKD",
    "CSKDConfig",
    "CrossEntropy",
    "CrossEntropyConfig",
    "DLBConfig",
    "LabelSmoothing",
    "LabelSmoothingConfig",
    "Objective",
    "ObjectiveConfig",
    "PSKDConfig",
]
