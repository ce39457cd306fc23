"""Random numbers are hashes of their purpose and the sample, never taken from a running generator.

So a skipped epoch, another batch composition, another number of workers or another backend changes no random number.
"""

import hashlib
import json

import torch
from torch import Tensor

_POSITIVE = 2**63 - 1
# The increment and the two multipliers of splitmix64 (Steele et al., OOPSLA 2014), as signed 64-bit integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def stream(*parts: int | str) -> int:
    """A 63-bit key for one purpose, such as `stream(seed, stage, epoch, "order")`; other parts give unrelated keys."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") & _POSITIVE


def permutation(key: int, n: int) -> Tensor:
    """A random order of 0..n-1: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))


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
            held[members[permutation(stream(key, label), len(members))[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def sample_hash(key: int, index: Tensor, draw: int | Tensor) -> Tensor:
    """One non-negative 63-bit random integer per sample, on `index`'s device.

    index: int64. draw: number of the draw of a sample under this key; a tensor broadcasts against `index`.
    """
    # Integer tensors wrap around in 64 bits; Python integers are wrapped here.
    offset = draw * _INCREMENT if isinstance(draw, Tensor) else (draw * _INCREMENT + 2**63) % 2**64 - 2**63
    return _mix(_mix(index * _INCREMENT + key) + offset) & _POSITIVE


def below(key: int, index: Tensor, draw: int | Tensor, bound: int | Tensor) -> Tensor:
    """A uniform integer in [0, bound) per sample, int64; `draw` and `bound` may be tensors that broadcast.

    The bias of the remainder is below bound / 2^63.
    """
    return sample_hash(key, index, draw) % bound


def uniform(key: int, index: Tensor, draw: int | Tensor) -> Tensor:
    """A uniform float64 in [0, 1) per sample."""
    # 53 bits fill a float64 exactly; all 63 could round up to 1.
    return (sample_hash(key, index, draw) >> 10).double() / 2**53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's shift repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
