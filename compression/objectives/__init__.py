"""Objectives: named losses of a model and a batch."""

from compression.objectives.base import Objective
from compression.objectives.config import ObjectiveConfig
from compression.objectives.cross_entropy import CrossEntropy, CrossEntropyConfig
from compression.objectives.cs_kd import CSKD, CSKDConfig
from compression.objectives.dlb import DLB, DLBConfig
from compression.objectives.kd import KD, KDConfig
from compression.objectives.label_smoothing import LabelSmoothing, LabelSmoothingConfig
from compression.objectives.ps_kd import PSKD, PSKDConfig
from compression.objectives.teacher import Teacher
from compression.objectives.tf_kd import TfKD, TfKDRegConfig, TfKDSelfConfig

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
