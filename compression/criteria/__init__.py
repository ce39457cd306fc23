"""How much each weight matters: a model and batches -> parameter name -> score, higher is kept."""

from compression.criteria.prospr import ProsPrConfig, prospr
from compression.criteria.registry import CRITERIA, CriterionConfig
from compression.criteria.snip import SNIPConfig, snip

__all__ = ["CRITERIA", "CriterionConfig", "ProsPrConfig", "SNIPConfig", "prospr", "snip"]
