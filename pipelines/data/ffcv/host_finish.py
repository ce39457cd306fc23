"""The last steps on the CPU, split over threads: flip, convert and normalise with a lookup table."""

import numpy as np
import torch
from torch import Tensor

from pipelines.data.ffcv.kernels import kernels
from pipelines.data.loading.views import Finish

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Floats are copied as integers of the same size, because the compiled loop does not support bfloat16."""


class HostFinish:
    """Gives the result of `finish`, bit for bit, from a table of its results for all 256 pixel values."""

    def __init__(self, finish: Finish) -> None:
        self._dtype = finish.dtype
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
        self._table = finish(ramp, None)[0, :, 0].contiguous().view(INTEGERS[finish.dtype.itemsize]).numpy()

    def room(self, num: int, size: int) -> np.ndarray:
        """An uninitialised buffer for `fill`, (N, size, size, 3)."""
        # NumPy asks for huge pages where the system grants them, torch does not: half of the time here is page faults.
        return np.empty((num, size, size, 3), self._table.dtype)

    def fill(self, pixels: np.ndarray, flips: np.ndarray, out: np.ndarray) -> None:
        """pixels: (N, S, S, 3) uint8. flips: (N,) bool. out: (N, S, S, 3), part of a buffer; overwritten."""
        kernels().look_up(pixels, flips, self._table, out)

    def images(self, room: np.ndarray) -> Tensor:
        """(N, 3, S, S) float in channels_last memory, a view of the buffer."""
        return torch.from_numpy(room).view(self._dtype).permute(0, 3, 1, 2)
