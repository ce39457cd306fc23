"""A device's own queue for making batches, beside the training's."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import torch
from torch import Tensor

from compression.batch import Batch


class SideStream:
    """On CUDA, batches are copied and normalised on a stream of their own; elsewhere there is nothing beside."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """What this thread does inside, it does on the stream and its device."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def room(self, *shape: int) -> Tensor:
        """Uninitialised uint8 on the CPU, from which `moved` copies without waiting."""
        if self._stream is None:
            return torch.from_numpy(np.empty(shape, np.uint8))  # in huge pages; torch does not ask for them
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def moved(self, value: Tensor) -> Tensor:
        """On the device; inside `entered` the copy does not wait, and `value`'s memory is kept until it has ended."""
        if self._stream is None:
            return value.to(self._device)
        return value.pin_memory().to(self._device, non_blocking=True)

    def mark(self) -> torch.cuda.Event | None:
        """Inside `entered`: the moment when all that was asked for so far is done."""
        if self._stream is None:
            return None
        done = torch.cuda.Event()
        done.record(self._stream)
        return done

    def hand_over(self, batch: Batch, done: torch.cuda.Event | None) -> Batch:
        """`batch` for the caller's stream, which waits for `done`; the host does not."""
        if done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            # Its memory belongs to the side stream, which must not use it again before the caller's stream has.
            for field in dataclasses.fields(batch):
                if isinstance(value := getattr(batch, field.name), Tensor):
                    value.record_stream(stream)
        return batch
