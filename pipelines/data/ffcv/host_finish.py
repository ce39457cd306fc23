"""The last steps on the CPU, shared out among threads: flip, convert and normalise by looking values up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.data.ffcv.kernels import kernels
from pipelines.data.loading.views import Finish

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Floats are moved as integers of the same bytes: the compiled loop knows no bfloat16."""


class HostFinish:
    """What `finish` gives, bit for bit: it made the table of the 256 values that a pixel can have."""

    def __init__(self, finish: Finish, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._integer = INTEGERS[dtype.itemsize]
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
        self._table = finish(ramp, None)[0, :, 0].contiguous().view(self._integer).numpy()

    def room(self, num: int, size: int) -> np.ndarray:
        """(N, size, size, 3) for `fill`."""
        # NumPy asks for huge pages where the system grants them, torch does not: half of the time here is page faults.
        return np.empty((num, size, size, 3), self._table.dtype)

    def fill(self, pixels: np.ndarray, flips: np.ndarray, out: np.ndarray) -> None:
        """pixels: (N, S, S, 3) uint8. flips: (N,) bool. out: (N, S, S, 3), of a room; overwritten."""
        kernels().look_up(pixels, flips, self._table, out)

    def images(self, room: np.ndarray) -> Tensor:
        """(N, 3, S, S) float in channels_last memory, the room's own."""
        return torch.from_numpy(room).view(self._dtype).permute(0, 3, 1, 2)
