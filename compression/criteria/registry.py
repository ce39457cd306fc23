"""Every criterion by name."""

from compression.criteria.base import CriterionConfig
from compression.criteria.force import FORCEConfig, IterSNIPConfig
from compression.criteria.grasp import GraSPConfig
from compression.criteria.magnitude import MagnitudeConfig
from compression.criteria.prospr import ProsPrConfig
from compression.criteria.random import RandomConfig
from compression.criteria.snip import SNIPConfig
from compression.criteria.synflow import SynFlowConfig

CRITERIA: dict[str, type[CriterionConfig]] = {
    "prospr": ProsPrConfig,
    "snip": SNIPConfig,
    "grasp": GraSPConfig,
    "synflow": SynFlowConfig,
    "force": FORCEConfig,
    "iter_snip": IterSNIPConfig,
    "magnitude": MagnitudeConfig,
    "random": RandomConfig,
}
