"""How much each weight matters: a model and batches -> parameter name -> score, higher is kept."""

from compression.criteria.base import CriterionConfig
from compression.criteria.force import FORCEConfig, IterSNIPConfig, force, iter_snip
from compression.criteria.grasp import GraSPConfig, grasp
from compression.criteria.magnitude import MagnitudeConfig, magnitude
from compression.criteria.prospr import ProsPrConfig, prospr
from compression.criteria.random import RandomConfig, random
from compression.criteria.snip import SNIPConfig, snip
from compression.criteria.synflow import SynFlowConfig, synflow

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
