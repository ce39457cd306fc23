"""A CUDA stream for preparing batches in parallel with the training."""

import contextlib
import dataclasses

import numpy as np
import torch
from torch import Tensor

from compression.batch import Batch


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
