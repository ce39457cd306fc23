"""How much each weight matters: a model and batches -> parameter name -> score, higher is kept."""

from compression.criteria.grasp import GraSPConfig, grasp
from compression.criteria.magnitude import MagnitudeConfig, magnitude
from compression.criteria.prospr import ProsPrConfig, prospr
from compression.criteria.random import RandomConfig, random
from compression.criteria.registry import CRITERIA, CriterionConfig
from compression.criteria.snip import SNIPConfig, snip

__all__ = [
    "CRITERIA",
    "CriterionConfig",
    "GraSPConfig",
    "MagnitudeConfig",
    "ProsPrConfig",
    "RandomConfig",
    "SNIPConfig",
    "grasp",
    "magnitude",
    "prospr",
    "random",
    "snip",
]
