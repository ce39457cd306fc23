"""Every criterion's config by name, and their union for whatever takes any of them."""

from __future__ import annotations

from typing import TypeAlias

from compression.criteria.force import FORCEConfig
from compression.criteria.grasp import GraSPConfig
from compression.criteria.iter_snip import IterSNIPConfig
from compression.criteria.magnitude import MagnitudeConfig
from compression.criteria.prospr import ProsPrConfig
from compression.criteria.random import RandomConfig
from compression.criteria.snip import SNIPConfig
from compression.criteria.synflow import SynFlowConfig

CriterionConfig: TypeAlias = (
    ProsPrConfig
    | SNIPConfig
    | GraSPConfig
    | SynFlowConfig
    | FORCEConfig
    | IterSNIPConfig
    | MagnitudeConfig
    | RandomConfig
)
"""A frozen dataclass with `label`, its usual number of `rounds`, `num_batches(objective)` and `score`, a function of
(model, batches, objective) or, if it can score a pruned network itself, (model, batches, objective, masks)."""

CRITERIA = {
    "prospr": ProsPrConfig,
    "snip": SNIPConfig,
    "grasp": GraSPConfig,
    "synflow": SynFlowConfig,
    "force": FORCEConfig,
    "iter_snip": IterSNIPConfig,
    "magnitude": MagnitudeConfig,
    "random": RandomConfig,
}
