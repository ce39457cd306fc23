"""Every random draw is derived from what it is for, never consumed from a running generator.

So a skipped epoch, another batch composition, another worker count or another backend changes no draw.
"""

from __future__ import annotations

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
    """A 63-bit key for one purpose, say `stream(seed, stage, epoch, "order")`; other parts give an unrelated key."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") & _POSITIVE


def permutation(key: int, n: int) -> Tensor:
    """A random order of 0..n-1: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))


def sample_hash(key: int, index: Tensor, draw: int | Tensor) -> Tensor:
    """One non-negative 63-bit random integer per sample, on `index`'s device.

    index: int64. draw: which of a sample's draws under this key; a tensor broadcasts against `index`.
    """
    # Integer tensors wrap around in 64 bits; a Python product has to be wrapped by hand to fit one.
    offset = draw * _INCREMENT if isinstance(draw, Tensor) else _wrapped(draw * _INCREMENT)
    return _mix(_mix(index * _INCREMENT + key) + offset) & _POSITIVE


def below(key: int, index: Tensor, draw: int | Tensor, bound: int | Tensor) -> Tensor:
    """Per sample a uniform integer in [0, bound), int64; `draw` and `bound` may be tensors that broadcast.

    The bias of the remainder is below bound / 2^63.
    """
    return sample_hash(key, index, draw) % bound


def uniform(key: int, index: Tensor, draw: int | Tensor) -> Tensor:
    """Per sample a uniform float64 in [0, 1)."""
    # 53 bits fill a float64 exactly; all 63 could round up to 1.
    return (sample_hash(key, index, draw) >> 10).double() / 2**53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own one repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
