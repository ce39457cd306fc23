"""How much each weight matters: a model and batches -> parameter name -> score, higher is kept."""

from compression.criteria.prospr import ProsPrConfig, prospr
from compression.criteria.snip import SNIPConfig, snip

CRITERIA = {"prospr": ProsPrConfig, "snip": SNIPConfig}

__all__ = ["CRITERIA", "ProsPrConfig", "SNIPConfig", "prospr", "snip"]
