"""The backend for data sets that fit into device memory: uint8 images stay there, and no step waits for the host."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch
from pipelines.data.config import Augmentation
from pipelines.data.loading import draws
from pipelines.data.loading.arrays import Arrays
from pipelines.data.loading.views import CROP, FLIP, Finish, Request, View, batch_of


class MemoryStore:
    """Reads views of `arrays` by indexing."""

    def __init__(self, arrays: Arrays, augmentation: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        self.host = device
        padding = augmentation.crop_padding
        self._flip = augmentation.flip
        self._padding = {"train": padding, "test": 0}
        self._windows = {p: windows(arrays.images[p], self._padding[p], device) for p in ("train", "test")}
        # All draws of a view come from one call: flip, top and left, each with its own bound.
        self._draws = torch.tensor([[FLIP], [CROP], [CROP + 1]], device=device)
        self._bounds = torch.tensor([[2], [2 * padding + 1], [2 * padding + 1]], device=device)
        self._finish = Finish(arrays.mean, arrays.std, device, dtype)

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            images = {name: self._view(request.part, view) for name, view in request.views.items()}
            yield batch_of(images, request.labels, request.index)

    def close(self) -> None:
        self._windows.clear()

    def _view(self, part: str, view: View) -> Tensor:
        stored, padding = self._windows[part], self._padding[part]
        if view.key is None:
            return self._finish(stored[:, padding, padding][view.rows], None)
        flip, top, left = draws.below(view.key, view.owner, self._draws, self._bounds)
        # One indexing operation copies all crops as uint8, in contiguous runs.
        return self._finish(stored[view.rows, top, left], flip.bool() if self._flip else None)


def windows(images: np.ndarray, padding: int, device: torch.device) -> Tensor:
    """All crops of the original size as a view, (N, 2p + 1, 2p + 1, H, W, C), of images padded with black.

    images: (N, H, W, C) uint8; `padding` is p, in pixels on each side.
    """
    stored = F.pad(torch.from_numpy(images).to(device), (0, 0, padding, padding, padding, padding)).contiguous()
    n, height, width, channels = images.shape
    per_image, per_row, per_pixel, _ = stored.stride()
    offsets = 2 * padding + 1
    return stored.as_strided(
        (n, offsets, offsets, height, width, channels), (per_image, per_row, per_pixel, per_row, per_pixel, 1)
    )
