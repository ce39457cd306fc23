"""Requests to a running training: save a checkpoint, or save and stop.

SIGTERM (`ray job stop`, a spot machine that runs the command is taken away) stops it. If Ray drains another machine, a
checkpoint is enough: the training continues without that machine.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

RESUME = "start the same command again to resume from the last checkpoint"


class Stopped(BaseException):
    """An item ends because it was asked to stop; its work is saved. Not an Exception, so that no handler catches it."""

    def __init__(self) -> None:
        super().__init__(f"stopped by SIGTERM; {RESUME}")


class StopRequest(IntEnum):
    """What a training is asked to do; the greatest of several requests counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StopSignal:
    """The request to this process. A plain value: a signal handler or another thread sets it."""

    def __init__(self) -> None:
        self._request = StopRequest.NOTHING

    def request_stop(self, *_: Any) -> None:
        self._request = StopRequest.STOP

    def request_save(self) -> None:
        self._request = max(self._request, StopRequest.SAVE)

    @property
    def stop_requested(self) -> bool:
        return self._request == StopRequest.STOP

    def take(self) -> StopRequest:
        """The current request. SAVE is returned once, STOP always."""
        request = self._request
        if request == StopRequest.SAVE:
            self._request = StopRequest.NOTHING
        return request


def listening() -> StopSignal | None:
    """The StopSignal that SIGTERM sets now; None: SIGTERM does something else."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, StopSignal) else None


def _default_in_child() -> None:
    """SIGTERM ends a forked child (which decodes images, for example): that is how its parent ends it."""
    if listening() is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_default_in_child)


@contextmanager
def stop_on_sigterm() -> Iterator[StopSignal]:
    """A StopSignal that SIGTERM sets inside the block. Python handles signals only in the main thread."""
    stop_signal = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop_signal
        return
    before = signal.signal(signal.SIGTERM, stop_signal.request_stop)
    try:
        yield stop_signal
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Vote:
    """The common request of the workers of an item: `match vote()`: NOTHING, SAVE, or STOP (save, raise Stopped()).

    Collective: every worker calls it at the same steps, and all get the same answer. A call starts an all-reduce and
    returns the result of the one before, which is complete by now: nobody waits, and the answer comes one call late.
    """

    def __init__(self, stop_signal: StopSignal, world_size: int, control: dist.ProcessGroup | None) -> None:
        self._signal, self._world_size, self._control = stop_signal, world_size, control
        self._request = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def __call__(self) -> StopRequest:
        if self._world_size == 1:
            return self._signal.take()
        if self._pending is not None:
            self._pending.wait()
        decided = StopRequest(int(self._request.item()))
        own = StopRequest.STOP if decided == StopRequest.STOP else self._signal.take()
        self._request = torch.tensor([own], dtype=torch.int32)
        self._pending = dist.all_reduce(self._request, op=dist.ReduceOp.MAX, group=self._control, async_op=True)
        return decided
