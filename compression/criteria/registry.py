"""Every criterion's config by name, and their union for whatever takes any of them."""

from __future__ import annotations

from typing import TypeAlias

from compression.criteria.grasp import GraSPConfig
from compression.criteria.magnitude import MagnitudeConfig
from compression.criteria.prospr import ProsPrConfig
from compression.criteria.random import RandomConfig
from compression.criteria.snip import SNIPConfig

CriterionConfig: TypeAlias = ProsPrConfig | SNIPConfig | GraSPConfig | MagnitudeConfig | RandomConfig
"""A frozen dataclass with `label`, `num_batches(objective)` and `score(model, batches, objective)`."""

CRITERIA = {
    "prospr": ProsPrConfig,
    "snip": SNIPConfig,
    "grasp": GraSPConfig,
    "magnitude": MagnitudeConfig,
    "random": RandomConfig,
}
