"""Allocation: from scores to masks. Counts are exact and ties are broken the same way everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from compression.masks import Masks


def global_topk(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Keep the N - floor(N * sparsity) highest of all N scores, whichever layer they lie in.

    scores: parameter name -> scores of the parameter's shape, higher is kept.
    sparsity: share removed, in [0, 1). It is taken as the decimal that is written: 0.9 of 10 weights removes 9.
    Among equal scores the earlier one (parameter order, then flat index) is pruned first.
    """
    check_sparsity(sparsity)
    check_finite(scores)
    flat = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    num_pruned = math.floor(flat.numel() * Fraction(str(sparsity)))
    order = torch.argsort(flat, stable=True)
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[order[:num_pruned]] = False
    sizes = [score.numel() for score in scores.values()]
    parts = zip(scores.items(), keep.split(sizes), strict=True)
    return Masks({name: part.view(score.shape).clone() for (name, score), part in parts})


def check_sparsity(sparsity: float) -> None:
    """ValueError unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity is the share of weights removed and must lie in [0, 1), not {sparsity}"
            + (f"; for {sparsity} % write {sparsity / 100:g}" if 1 < sparsity < 100 else "")
        )


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """ValueError that names the layers whose scores cannot be ranked."""
    if not scores:
        raise ValueError("there are no scores to allocate")
    wrong = [name for name, score in scores.items() if torch.isnan(score).any()]
    if wrong:
        raise ValueError(f"scores are not a number in {', '.join(wrong)}: the loss overflowed while scoring")
