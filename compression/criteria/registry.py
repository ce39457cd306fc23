"""Every criterion's config by name, and their union for whatever takes any of them."""

from __future__ import annotations

from typing import TypeAlias

from compression.criteria.prospr import ProsPrConfig
from compression.criteria.snip import SNIPConfig

CriterionConfig: TypeAlias = ProsPrConfig | SNIPConfig
"""A frozen dataclass with `label`, `num_batches(objective)` and `score(model, batches, objective)`."""

CRITERIA = {"prospr": ProsPrConfig, "snip": SNIPConfig}
