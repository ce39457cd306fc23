"""What may be asked of a training from outside: to save what it has, or to save it and end.

SIGTERM (`ray job stop`, the notice of a spot machine that runs the command) ends it. Where Ray drains another machine,
which is what becomes of that one's notice, a checkpoint is enough: the training goes on without it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist


class Stopped(BaseException):
    """An item ends because it was asked to; what it had done is saved. No Exception: nobody may take it for one."""

    def __init__(self) -> None:
        super().__init__("stopped by SIGTERM; start the same command again: the run goes on from its last checkpoint")


class StopRequest(IntEnum):
    """What is asked of a training; of several wishes the greatest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StopSignal:
    """What this process has been asked. A plain value, as it is set inside a signal handler, or by another thread."""

    def __init__(self) -> None:
        self._wish = StopRequest.NOTHING

    def give(self, *_: Any) -> None:
        """Ask it to stop."""
        self._wish = StopRequest.STOP

    def ask_to_save(self) -> None:
        """Ask it for one checkpoint."""
        self._wish = max(self._wish, StopRequest.SAVE)

    def __call__(self) -> bool:
        """Whether it is to stop."""
        return self._wish == StopRequest.STOP

    def take(self) -> StopRequest:
        """What is wished; a checkpoint is asked for once."""
        wish = self._wish
        if wish == StopRequest.SAVE:
            self._wish = StopRequest.NOTHING
        return wish


def _default_in_child() -> None:
    """A forked child (that decodes images, say) is ended by SIGTERM: by that its parent gets rid of it."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopSignal):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_default_in_child)


@contextmanager
def sigterm_notice() -> Iterator[StopSignal]:
    """A notice that SIGTERM gives, inside the block; outside of the main thread Python takes no signals."""
    notice = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice.give)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Vote:
    """What the workers of an item do here, together: `match vote()`: nothing, save, or save and raise Stopped().

    Collective: each worker calls it at the same steps, and all get the same answer. A call casts a vote and gives the
    result of the vote before, which has been counted meanwhile: so nobody waits, and the answer comes one call late.
    """

    def __init__(self, signal: StopSignal, world_size: int, control: dist.ProcessGroup | None) -> None:
        self._signal, self._world_size, self._control = signal, world_size, control
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._counting: dist.Work | None = None

    def __call__(self) -> StopRequest:
        if self._world_size == 1:
            return self._signal.take()
        if self._counting is not None:
            self._counting.wait()
        decided = StopRequest(int(self._votes.item()))
        own = StopRequest.STOP if decided == StopRequest.STOP else self._signal.take()
        self._votes = torch.tensor([own], dtype=torch.int32)
        self._counting = dist.all_reduce(self._votes, op=dist.ReduceOp.MAX, group=self._control, async_op=True)
        return decided
