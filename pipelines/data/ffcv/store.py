"""The backend for prepared .beton files: threads decode in advance with FFCV's native functions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compression.batch import Batch
from pipelines.data.ffcv.beton import AGAIN, Beton
from pipelines.data.ffcv.kernels import JPEG, kernels
from pipelines.data.loading.geometry import Geometry, Plan
from pipelines.data.loading.prefetch import prefetch
from pipelines.data.loading.views import Finish, Request, View, batch_of

WAITING = 3
"""Finished batches that are kept ready for the training."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Floats are copied as integers of the same size, because the compiled loop does not support bfloat16."""

Made = tuple[Batch, torch.cuda.Event | None]


class BetonStore:
    """Reads views of .beton files with `workers` threads (at least one), some batches in advance.

    On the CPU these threads also flip and normalise; a GPU receives uint8 and does that itself.
    """

    def __init__(self, files: Mapping[str, Beton], geometry: Geometry, finish: Finish, workers: int) -> None:
        self.host = torch.device("cpu")
        self._files = dict(files)
        self._geometry = geometry
        self._finish = finish
        self._side = SideStream(finish.device)
        self._host_finish = HostFinish(finish) if finish.device.type == "cpu" else None
        self._workers = max(1, workers)
        self._start_threads()

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        with contextlib.closing(prefetch(self._batches(requests), WAITING)) as batches:
            for batch, done in batches:
                yield self._side.hand_over(batch, done)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._files.clear()

    def _start_threads(self) -> None:
        # Threads live as long as the store: the native decoder keeps memory for each thread that ever called it.
        self._threads, self._process = ThreadPoolExecutor(self._workers, "decode"), os.getpid()

    def _batches(self, requests: Iterable[Request]) -> Generator[Made, None, None]:
        """The next batch is always started before waiting for one, so that no thread idles at the end of a batch."""
        if self._process != os.getpid():  # a forked process has no threads of its parent
            self._start_threads()
        begun: deque[tuple[Request, dict[str, _Decoding]]] = deque()
        with self._side.entered():
            for request in requests:
                begun.append((request, {name: self._begin(request.part, view) for name, view in request.views.items()}))
                if len(begun) > 1:
                    yield self._made(*begun.popleft())
            while begun:
                yield self._made(*begun.popleft())

    def _begin(self, part: str, view: View) -> _Decoding:
        """Starts decoding in the threads. ValueError: a row or the size of an image does not fit."""
        beton, num = self._files[part], len(view.rows)
        plan = _plan(beton, self._geometry, view)
        pixels = self._side.room(num, plan.size, plan.size, 3)
        finished = self._host_finish.room(num, plan.size) if self._host_finish else None
        decoding = _Decoding(beton, view.rows.numpy(), plan, pixels, finished)
        bounds = [num * share // self._workers for share in range(self._workers + 1)]
        shares = [slice(begin, end) for begin, end in itertools.pairwise(bounds) if begin < end]
        decoding.shares.extend(self._threads.submit(self._decode, decoding, share) for share in shares)
        return decoding

    def _decode(self, decoding: _Decoding, share: slice) -> None:
        """Runs in a thread. ValueError: an image is damaged."""
        pixels = decoding.pixels.numpy()[share]
        decoding.decode(share, pixels)
        if self._host_finish and decoding.finished is not None:
            flips = decoding.plan.flips
            flipped = np.zeros(len(pixels), np.bool_) if flips is None else flips.numpy()[share]
            self._host_finish.fill(pixels, flipped, decoding.finished[share])

    def _made(self, request: Request, views: Mapping[str, _Decoding]) -> Made:
        images = {name: self._images(decoding) for name, decoding in views.items()}
        batch = batch_of(images, self._side.moved(request.labels), self._side.moved(request.index))
        return batch, self._side.mark()

    def _images(self, decoding: _Decoding) -> Tensor:
        """Waits for the threads of one view."""
        for share in decoding.shares:
            share.result()
        if self._host_finish and decoding.finished is not None:
            return self._host_finish.images(decoding.finished)
        flips = decoding.plan.flips
        return self._finish(self._side.moved(decoding.pixels), None if flips is None else self._side.moved(flips))


@dataclass(frozen=True)
class _Decoding:
    """One view of a batch while threads work on it.

    rows: (N,) int64. pixels: (N, S, S, 3) uint8 on the CPU. finished: buffer for the results, if made on the CPU.
    """

    beton: Beton
    rows: np.ndarray
    plan: Plan
    pixels: Tensor
    finished: np.ndarray | None
    shares: list[Future[None]] = field(default_factory=list)

    def decode(self, share: slice, pixels: np.ndarray) -> None:
        """Fills `pixels`, the rows `share` of the batch."""
        images = self.beton.images[self.rows[share]]
        sources, targets = (boxes[share].contiguous().numpy() for boxes in (self.plan.sources, self.plan.targets))
        jpegs = images[images[:, 2] == JPEG]
        whole = np.empty(3 * int((jpegs[:, 3] * jpegs[:, 4]).max(initial=0)), np.uint8)
        part = np.empty(3 * int(targets[:, 2:].prod(1).max()), np.uint8)
        address = self.beton.mapped.ctypes.data
        if (damaged := kernels().decode(address, images, sources, targets, whole, part, pixels)) >= 0:
            row = self.rows[share][damaged]
            raise ValueError(f"{self.beton.path}: image {row} is a damaged JPEG: {AGAIN}")


def _plan(beton: Beton, geometry: Geometry, view: View) -> Plan:
    """The plan of a view, checked here because the native functions check nothing."""
    outside = view.rows[(view.rows < 0) | (view.rows >= len(beton.images))]
    if len(outside):
        raise ValueError(f"{beton.path} has images 0 to {len(beton.images) - 1}, not {int(outside[0])}")
    sizes = beton.sizes[view.rows]
    plan = geometry.plan(view, sizes)
    corner, extent = plan.sources.split(2, 1)
    fits = ((corner >= 0) & (extent > 0) & (extent <= sizes - corner)).all(1)
    if not fits.all():
        row, (height, width) = int(view.rows[~fits][0]), sizes[~fits][0].tolist()
        raise ValueError(
            f"{beton.path}: image {row} has {height} x {width} pixels and is smaller than its crop: {AGAIN}"
        )
    corner, extent = plan.targets.split(2, 1)
    assert ((extent > 0) & (corner < plan.size) & (corner + extent > 0)).all(), "a target lies outside its picture"
    return plan


class SideStream:
    """On CUDA, batches are copied and normalised on a separate stream; on other devices all methods are trivial."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """A context in which this thread uses the stream."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def room(self, *shape: int) -> Tensor:
        """An uninitialised uint8 buffer on the CPU, from which `moved` copies without waiting."""
        if self._stream is None:
            return torch.from_numpy(np.empty(shape, np.uint8))  # NumPy asks for huge pages, torch does not
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def moved(self, value: Tensor) -> Tensor:
        """A copy on the device. Inside `entered` it is asynchronous; the memory of `value` is kept until it is done."""
        if self._stream is None:
            return value.to(self._device)
        return value.pin_memory().to(self._device, non_blocking=True)

    def mark(self) -> torch.cuda.Event | None:
        """An event for the end of all work so far on the stream. Call it inside `entered`."""
        if self._stream is None:
            return None
        done = torch.cuda.Event()
        done.record(self._stream)
        return done

    def hand_over(self, batch: Batch, done: torch.cuda.Event | None) -> Batch:
        """Make `batch` usable on the caller's stream, which waits for `done`; the host does not wait."""
        if done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            # The memory belongs to the side stream, which must not reuse it before the caller's stream is done.
            for field in dataclasses.fields(batch):
                if isinstance(value := getattr(batch, field.name), Tensor):
                    value.record_stream(stream)
        return batch


class HostFinish:
    """The last steps on the CPU, split over threads: flip, convert and normalise with a lookup table.

    It gives the result of `finish`, bit for bit, from a table of its results for all 256 pixel values.
    """

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
