"""Batches for detection: letterboxed pictures from a backend, and boxes, which are held here.

The position of an image in its letterbox depends only on its size. So all boxes are converted once, when the data is
opened, and backends do not handle boxes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compression.batch import Batch
from pipelines.data.config import DetectionAugmentation
from pipelines.data.detection.boxes import PaddedBoxes, draw_crops, padded
from pipelines.data.ffcv.beton import AGAIN, Beton
from pipelines.data.loading import draws
from pipelines.data.loading.views import FLIP, Finish, Request, Store

if TYPE_CHECKING:
    from pipelines.data.readers.voc import Detections


@dataclass(frozen=True)
class Annotated:
    """Annotations of one part. boxes: in pixels of the images. sizes: (N, 2) int64, heights and widths."""

    boxes: PaddedBoxes
    sizes: Tensor


class DetectionStore:
    """Gives the batches of `store`, which uses Letterbox(size), with boxes instead of class labels.

    A batch's labels are a list of N dicts in torchvision's form, on the device:

        boxes (n, 4) float32, left, top, right, bottom in pixels of the letterboxed picture; n may be 0
        labels (n,) int64, from 1; difficult (n,) bool
        image_id (1,) int64, the index of the sample
        orig_size (2,) int64, height and width of the stored image, for `boxes.unletterboxed`

    Training images are cropped and flipped, evaluation images are not.
    """

    def __init__(
        self,
        store: Store,
        parts: Mapping[str, Annotated],
        size: int,
        augmentation: DetectionAugmentation,
        finish: Finish,
    ) -> None:
        """finish: the last steps of `store`. ValueError: a box lies outside its image."""
        self.host = store.host
        self._store = store
        self._size = size
        self._augmentation = augmentation
        self._device = finish.device
        self._black = finish(torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=finish.device), None)
        # On the host, which needs the number of boxes of each image; reading it from the device would wait.
        self._sizes = {name: part.sizes.to(self.host) for name, part in parts.items()}
        self._boxes = {name: _letterboxed(name, part, size).to(self.host) for name, part in parts.items()}

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        asked: deque[Request] = deque()

        def noted() -> Iterator[Request]:
            for request in requests:
                asked.append(request)  # the store may read requests in advance, in another thread
                yield request

        for batch in self._store.read(noted()):
            yield self._annotated(batch, asked.popleft())

    def close(self) -> None:
        self._store.close()
        self._boxes.clear()

    def _annotated(self, batch: Batch, request: Request) -> Batch:
        view = request.views["images"]
        boxes, sizes = self._boxes[request.part][view.rows], self._sizes[request.part][view.rows]
        images = batch.images
        if view.key is not None:
            images, boxes = self._augmented(images, boxes, sizes, view.key, view.owner)
        return dataclasses.replace(batch, images=images, labels=self._targets(boxes, request.index, sizes))

    def _augmented(
        self, images: Tensor, boxes: PaddedBoxes, sizes: Tensor, key: int, owner: Tensor
    ) -> tuple[Tensor, PaddedBoxes]:
        if self._augmentation.crop:
            crops = draw_crops(boxes, sizes, self._size, key, owner)
            boxes = crops.boxes(boxes)
            images = crops.each(self._moved).images(images, self._black)
        if self._augmentation.flip:
            flips = draws.below(key, owner, FLIP, 2).bool()
            boxes = boxes.flipped(flips, self._size)
            images = torch.where(self._moved(flips)[:, None, None, None], images.flip(3), images)
        return images, boxes

    def _targets(self, boxes: PaddedBoxes, index: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """One dict per image. Their tensors are views of a few large ones, which are moved at once."""
        counts, real = boxes.counts.tolist(), boxes.real
        objects = {"boxes": boxes.boxes, "labels": boxes.labels, "difficult": boxes.difficult}
        columns: dict[str, Any] = {name: self._moved(values[real]).split(counts) for name, values in objects.items()}
        columns["image_id"] = self._moved(index[:, None]).unbind()
        columns["orig_size"] = self._moved(sizes).unbind()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _moved(self, value: Tensor) -> Tensor:
        """A copy on the device, for which the host does not wait."""
        if self._device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(self._device, non_blocking=True)


def annotated(part: Detections | Beton, num_classes: int) -> Annotated:
    """The annotations of one part. ValueError: a class is out of range."""
    if not isinstance(part, Beton):
        return Annotated(padded([part.boxes(row) for row in range(len(part))]), part.sizes)
    labels = torch.from_numpy(part.field("classes")).long()
    boxes, difficult = torch.from_numpy(part.field("boxes")), torch.from_numpy(part.field("difficult")).bool()
    found = PaddedBoxes(boxes, labels, difficult, (labels > 0).sum(1))
    if ((labels < 0) | (labels >= num_classes) | ((labels > 0) != found.real)).any():
        raise ValueError(f"{part.path} has boxes of classes outside 1 to {num_classes - 1}: {AGAIN}")
    return Annotated(found, part.sizes)


def _letterboxed(name: str, part: Annotated, size: int) -> PaddedBoxes:
    try:
        return part.boxes.letterboxed(part.sizes, size)
    except ValueError as error:
        raise ValueError(f"the {name} part: {error}") from error
