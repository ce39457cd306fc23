"""Reading tests/reference: tiny networks, inputs and the numbers that have to come out (see its README)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compression import Batch

FOLDER = Path(__file__).parent / "reference"
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())["cases"]}


class Case:
    """One file of reference numbers, as float64 tensors."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(FOLDER / CASES[name]["file"], allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, by the rest of their names, in the order of the network's parameters."""
        return {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}

    def network(self) -> nn.Sequential:
        """netA or netB with the case's weights and running statistics."""
        model = net_a() if CASES[self.name]["net"] == "A" else net_b()
        model.double().load_state_dict({**self.group("param/"), **self.group("buffer/")})
        return model

    def batch(self, x: str, y: str, paired: str | None = None) -> Batch:
        labels = self[y]
        return Batch(self[x], labels, torch.arange(len(labels)), self[paired] if paired else None)


def net_a() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def net_b() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def assert_matches(found: Tensor, expected: Tensor) -> None:
    """Within the tolerance that the reference was checked with: rtol 1e-9, atol 1e-11 of the largest value."""
    atol = 1e-11 * float(expected.abs().max())
    torch.testing.assert_close(found.detach(), expected.to(found.dtype), rtol=1e-9, atol=atol)
