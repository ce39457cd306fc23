"""Stratified splits."""

import torch
from torch import Tensor

from pipelines.data.loading import draws


def hold_out(labels: Tensor, fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), int64, ascending. `round(fraction * n)` of each class are held out, at least one.

    labels: (N,) int64 on the CPU. fraction: 0 holds nothing out.
    ValueError: a class would have no kept sample.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    if fraction > 0:
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            count = max(1, round(fraction * len(members)))
            if count == len(members):
                raise ValueError(
                    f"class {label} has {len(members)} training images, and a val_fraction of {fraction:g} leaves none "
                    "for training: use a smaller val_fraction, or 0"
                )
            held[members[draws.permutation(draws.stream(key, label), len(members))[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
