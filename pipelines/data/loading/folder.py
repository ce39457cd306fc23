"""The backend for the official files: processes decode and crop, the device flips and normalises."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compression.batch import Batch
from pipelines.data.loading.geometry import Geometry, PadCrop, Plan, ResizedCrop
from pipelines.data.loading.views import Finish, Request, View, batch_of
from pipelines.data.readers.image_folders import centre

AT_ONCE = 16
"""Full images that one process holds before it crops them."""

Decoded = tuple[Tensor, Any, dict[str, tuple[Tensor, Tensor | None]]]


class Photos(Protocol):
    """A part whose images can be read."""

    def image(self, row: int) -> Image.Image: ...


class FolderStore:
    """Reads views of image files with `workers` processes (0: this one)."""

    def __init__(self, parts: Mapping[str, Photos], geometry: Geometry, finish: Finish, workers: int) -> None:
        self.host = torch.device("cpu")
        self._device = finish.device
        self._workers = workers
        self._decoder = _Decoder(parts, geometry)
        self._finish = finish

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        # The sampler yields the requests: workers receive whole batches in order, a few in advance. Without a generator
        # of its own, DataLoader would draw the seed of its workers from the global one.
        decoded: Iterable[Decoded] = DataLoader(
            self._decoder,
            batch_size=None,
            sampler=requests,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),
        )
        for index, labels, views in decoded:
            images = {
                name: self._finish(self._moved(pixels), self._moved(flips)) for name, (pixels, flips) in views.items()
            }
            yield batch_of(images, self._moved(labels), self._moved(index))

    def close(self) -> None:
        """Nothing to release: worker processes end with their iterator, also when it is deleted early."""

    def _moved(self, value: Any) -> Any:
        return None if value is None else value.to(self._device, non_blocking=True)


class _Decoder(Dataset[Decoded]):
    """Maps a Request to the uint8 pixels and flips of its views; runs in the worker processes."""

    def __init__(self, parts: Mapping[str, Photos], geometry: Geometry) -> None:
        self._parts = parts
        self._geometry = geometry

    def __getitem__(self, request: Request) -> Decoded:
        part = self._parts[request.part]
        return request.index, request.labels, {name: self._view(part, view) for name, view in request.views.items()}

    def _view(self, part: Photos, view: View) -> tuple[Tensor, Tensor | None]:
        pixels, flips = [], []
        for start in range(0, len(view.rows), AT_ONCE):
            few = slice(start, start + AT_ONCE)
            images = [self._stored(part.image(row)) for row in view.rows[few].tolist()]
            sizes = torch.tensor([(image.height, image.width) for image in images])
            plan = self._geometry.plan(View(view.rows[few], view.owner[few], view.key, view.size), sizes)
            if view.key is None and isinstance(self._geometry, ResizedCrop):
                # torchvision's resize and centre crop, with which published weights were evaluated.
                pixels += [centre(image, self._geometry.resize, plan.size) for image in images]
            else:
                pixels += [_picture(image, plan, at) for at, image in enumerate(images)]
            flips.append(plan.flips)
        stacked = torch.from_numpy(np.stack(pixels))
        return stacked, None if flips[0] is None else torch.cat(flips)

    def _stored(self, image: Image.Image) -> Image.Image:
        """The image as other backends store it: sets with one image size are resized first."""
        size = self._geometry.size
        if isinstance(self._geometry, PadCrop) and image.size != (size, size):
            return Image.fromarray(centre(image, size, size))
        return image


def _picture(image: Image.Image, plan: Plan, at: int) -> np.ndarray:
    """(size, size, 3) uint8: the plan applied to the image at position `at`."""
    (top, left, height, width), (y, x, h, w) = plan.sources[at].tolist(), plan.targets[at].tolist()
    # Not resize(..., box=box): its filter would use pixels outside the box.
    part = image.crop((left, top, left + width, top + height))
    if part.size != (w, h):
        part = part.resize((w, h), Image.Resampling.BILINEAR)
    if (h, w) == (plan.size, plan.size):
        return np.asarray(part)
    picture = np.zeros((plan.size, plan.size, 3), np.uint8)
    picture[y : y + h, x : x + w] = np.asarray(part)
    return picture


def _unchanged(value: Any) -> Any:
    return value
