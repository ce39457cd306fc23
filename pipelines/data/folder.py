"""The backend for folders too big for memory: processes decode and crop, the device flips and normalises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compression.batch import Batch
from pipelines.data import draws
from pipelines.data.image_folders import Folder, centre, decode
from pipelines.data.sources import IMAGENET_MEAN, IMAGENET_STD
from pipelines.data.views import CROP, FLIP, Finish, Request, View, batch_of

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10

Decoded = tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor | None]]]


class FolderStore:
    """Reads views of image files through `workers` processes (0: in this one)."""

    def __init__(
        self,
        parts: Mapping[str, Folder],
        image_size: int,
        resize: int,
        device: torch.device,
        dtype: torch.dtype,
        workers: int,
    ) -> None:
        self.host = torch.device("cpu")
        self._device = device
        self._workers = workers
        self._decoder = _Decoder(parts, image_size, resize)
        self._finish = Finish(IMAGENET_MEAN, IMAGENET_STD, image_size, device, dtype)

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        # The sampler is the stream of requests: workers get whole batches, in order, a few ahead. The generator is
        # DataLoader's own, or it would draw its workers' seed from the global one.
        decoded: Iterable[Decoded] = DataLoader(
            self._decoder,
            batch_size=None,
            sampler=requests,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),
        )
        for index, labels, views in decoded:
            images = {
                name: self._finish(self._moved(pixels), self._moved(flips)) for name, (pixels, flips) in views.items()
            }
            yield batch_of(images, self._moved(labels), self._moved(index))

    def close(self) -> None:
        """Nothing is held: workers end with the iteration that they serve, also when it is abandoned."""

    def _moved(self, value: Any) -> Any:
        return None if value is None else value.to(self._device, non_blocking=True)


class _Decoder(Dataset[Decoded]):
    """Maps a Request to uint8 pixels and flips of its views; runs in the decoding processes."""

    def __init__(self, parts: Mapping[str, Folder], image_size: int, resize: int) -> None:
        self._parts = parts
        self._size = image_size
        self._resize = resize

    def __getitem__(self, request: Request) -> Decoded:
        folder = self._parts[request.part]
        return request.index, request.labels, {n: self._view(folder, view) for n, view in request.views.items()}

    def _view(self, folder: Folder, view: View) -> tuple[Tensor, Tensor | None]:
        images = (decode(folder.path(row)) for row in view.rows.tolist())
        if view.key is None:
            return torch.from_numpy(np.stack([centre(image, self._resize, self._size) for image in images])), None
        crops = draws.uniform(view.key, view.owner[:, None], CROP + torch.arange(4 * _ATTEMPTS))
        attempts = crops.view(-1, _ATTEMPTS, 4).tolist()
        pixels = [self._crop(image, drawn) for image, drawn in zip(images, attempts, strict=True)]
        return torch.from_numpy(np.stack(pixels)), draws.below(view.key, view.owner, FLIP, 2).bool()

    def _crop(self, image: Image.Image, attempts: list[list[float]]) -> np.ndarray:
        left, top, width, height = random_box(image.width, image.height, attempts)
        box = (left, top, left + width, top + height)
        # Not resize(..., box=box): its filter would reach over the edge of the box.
        return np.asarray(image.crop(box).resize((self._size, self._size), Image.Resampling.BILINEAR))


def random_box(width: int, height: int, attempts: list[list[float]]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random-resized crop: SCALE of the area, RATIO of the sides, log-uniform.

    attempts: draws in [0, 1) for area, ratio, left and top of each attempt; the first that fits is taken. Where none
    does, the largest central box with an allowed ratio.
    """
    for area, ratio, x, y in attempts:
        pixels = width * height * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        aspect = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def _as_it_is(value: Any) -> Any:
    return value
