"""ProcessGroup: what ties a worker to the others that share its items: collectives, a barrier, signs of life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from cluster.heartbeat import Heartbeat

PATIENCE_WITH_THE_FIRST = timedelta(hours=6)
"""How long workers wait for the first one while it computes alone, and gives signs of life: scoring may take hours."""

MEETING_AFTER_FAILURE = timedelta(seconds=30)
"""How long a worker whose item failed waits for the others before it ends the group."""


def exchange(
    store: dist.Store, rank: int, world_size: int, question: str, answer: str, patience: timedelta
) -> list[str]:
    """What each worker answers to a question, in the order of ranks. RuntimeError where one does not, in time."""
    keys = [f"{question} rank {other}" for other in range(world_size)]
    store.set(keys[rank], answer)
    store.wait(keys, patience)
    return [store.get(key).decode() for key in keys]


class ProcessGroup:
    """What ties a worker to the others of its world: torch's default group, and a gloo group for the body's own use."""

    def __init__(self, store: dist.Store, backend: str, rank: int, world_size: int, patience: float) -> None:
        self._store, self._backend, self._rank, self._world_size = store, backend, rank, world_size
        self._patience = timedelta(seconds=patience)
        self._num_meetings = 0
        self._open()

    @contextmanager
    def watched(self, on_silence: Callable[[str], None]) -> Iterator[None]:
        """Inside the block, `on_silence` is called in a thread where the first worker gives no sign of life."""
        heartbeat = Heartbeat(self._store, self._rank, self._patience.total_seconds(), on_silence)
        try:
            yield
        finally:
            heartbeat.stop()

    def meet(self, failed: bool, stopping: bool = False) -> bool:
        """Wait until all workers have ended the item; if one failed, make the groups anew. Whether one is stopping.

        They meet at the store, as a failed item may leave a collective in flight on some workers, with which the next
        one would pair up. Raises RuntimeError where the others do not come: they wait in a collective that this worker
        has left.
        """
        self._num_meetings += 1
        word = ("failed" if failed else "done") + (" stopping" if stopping else "")
        patience = MEETING_AFTER_FAILURE if failed else self._patience
        words = exchange(self._store, self._rank, self._world_size, f"meeting {self._num_meetings}", word, patience)
        if any(word.startswith("failed") for word in words):
            dist.destroy_process_group()
            self._open()
        return any(word.endswith("stopping") for word in words)

    def close(self) -> None:
        """Leave the groups."""
        dist.destroy_process_group()

    def _open(self) -> None:
        if not dist.is_initialized():  # Ray Train opens the first default group itself
            store = dist.PrefixStore(f"groups after meeting {self._num_meetings}", self._store)
            dist.init_process_group(
                self._backend, store=store, rank=self._rank, world_size=self._world_size, timeout=self._patience
            )
        control = dist.new_group(backend="gloo", timeout=PATIENCE_WITH_THE_FIRST)
        assert isinstance(control, dist.ProcessGroup), "every worker is a member"
        self.control = control
