"""SIGTERM (the notice of a spot machine, `ray job stop`): the workers save what they have, and the command ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from cluster.launch import Worker

GRACE_SECONDS = 100.0
"""How long workers that were asked to stop may take to save their work; a spot machine is taken after 120 s."""


class Stopped(BaseException):
    """An item ends because it was asked to; what it had done is saved. No Exception: nobody may take it for one."""

    def __init__(self) -> None:
        super().__init__("stopped by SIGTERM; start the same command again: the run goes on from its last checkpoint")


class Notice:
    """Whether this process has been asked to stop. A plain flag, as it is set inside a signal handler."""

    def __init__(self) -> None:
        self._given = False

    def give(self, *_: Any) -> None:
        self._given = True

    def __call__(self) -> bool:
        return self._given


def _default_in_child() -> None:
    """A forked child (that decodes images, say) is ended by SIGTERM: by that its parent gets rid of it."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Notice):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_default_in_child)


@contextmanager
def sigterm_notice() -> Iterator[Notice]:
    """A notice that SIGTERM gives, inside the block; outside of the main thread Python takes no signals."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice.give)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class StopVote:
    """Whether the workers of an item stop here, together: `if vote(): save and raise Stopped()`.

    Collective: each worker calls it at the same steps, and all get the same answer. A call casts a vote and gives the
    result of the vote before, which has been counted meanwhile: so nobody waits, and the answer comes one call late.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._counting: dist.Work | None = None

    def __call__(self) -> bool:
        if self._worker.world_size == 1:
            return self._worker.stopping()
        if self._counting is not None:
            self._counting.wait()
        decided = bool(self._votes.item())
        self._votes = torch.tensor([int(decided or self._worker.stopping())], dtype=torch.int32)
        self._counting = dist.all_reduce(self._votes, op=dist.ReduceOp.MAX, group=self._worker.control, async_op=True)
        return decided
