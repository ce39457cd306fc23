"""Objectives: named losses of a model and a batch."""

from compression.objectives.base import Objective
from compression.objectives.config import ObjectiveConfig
from compression.objectives.cross_entropy import CrossEntropy, CrossEntropyConfig
from compression.objectives.cs_kd import CSKD, CSKDConfig
from compression.objectives.dlb import DLB, DLBConfig
from compression.objectives.kd import KD, KDConfig
from compression.objectives.label_smoothing import LabelSmoothing, LabelSmoothingConfig
from compression.objectives.ps_kd import PSKD, PSKDConfig
from compression.objectives.registry import OBJECTIVES
from compression.objectives.teacher import Teacher
from compression.objectives.tf_kd import TfKD, TfKDRegConfig, TfKDSelfConfig

__all__ = [
    "CSKD",
    "DLB",
    "KD",
    "OBJECTIVES",
    "PSKD",
    "CSKDConfig",
    "CrossEntropy",
    "CrossEntropyConfig",
    "DLBConfig",
    "KDConfig",
    "LabelSmoothing",
    "LabelSmoothingConfig",
    "Objective",
    "ObjectiveConfig",
    "PSKDConfig",
    "Teacher",
    "TfKD",
    "TfKDRegConfig",
    "TfKDSelfConfig",
]
