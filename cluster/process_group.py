"""ProcessGroup: collectives, a barrier between items, and a heartbeat for the workers that share an item."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from cluster.environment import SHUTDOWN_GRACE_SECONDS

CONTROL_TIMEOUT = timedelta(hours=6)
"""How long workers wait for worker 0 while it computes alone and its heartbeat goes on: scoring may take hours."""

BARRIER_AFTER_FAILURE = timedelta(seconds=30)
"""How long a worker whose item failed waits for the others before it ends the group."""

START_TIMEOUT = timedelta(seconds=120)
"""How long workers wait at least until all have started."""

HEARTBEAT_CHECKS = 20
"""The heartbeat is checked this often during the timeout; worker 0 is silent if no check in a row saw a change. Checks
are counted, not seconds: a process that was itself suspended has not checked."""

HEARTBEAT = "heartbeat of worker 0"


def exchange(store: dist.Store, rank: int, world_size: int, key: str, value: str, timeout: timedelta) -> list[str]:
    """Every worker's value of this key, in the order of ranks. RuntimeError if one is missing after the timeout."""
    keys = [f"{key} rank {other}" for other in range(world_size)]
    store.set(keys[rank], value)
    store.wait(keys, timeout)
    return [store.get(key).decode() for key in keys]


class ProcessGroup:
    """The process groups of one worker: torch's default group, and the gloo group `control` for the body's own use.

    timeout: seconds after which a collective, the barrier and the heartbeat give up.
    """

    def __init__(self, store: dist.Store, backend: str, rank: int, world_size: int, timeout: float) -> None:
        self._store, self._backend, self._rank, self._world_size = store, backend, rank, world_size
        self._timeout = timedelta(seconds=timeout)
        self._num_barriers = 0
        self._open()

    def _open(self) -> None:
        """Open the groups after all workers have started, as their timeout may be short."""
        key, timeout = f"start {self._num_barriers}", max(self._timeout, START_TIMEOUT)
        exchange(self._store, self._rank, self._world_size, key, "", timeout)
        if not dist.is_initialized():  # Ray Train opens the first default group itself
            store = dist.PrefixStore(f"groups after barrier {self._num_barriers}", self._store)
            dist.init_process_group(
                self._backend, store=store, rank=self._rank, world_size=self._world_size, timeout=self._timeout
            )
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        assert isinstance(control, dist.ProcessGroup), "every worker is a member"
        self.control = control

    def close(self) -> None:
        dist.destroy_process_group()

    def barrier(self, failed: bool, stop: bool) -> bool:
        """Wait until all workers have ended the item; whether any was asked to stop. New groups if any failed.

        The barrier uses the store: a failed item may leave a collective in flight on some workers, and the next
        collective would pair up with it. RuntimeError if the others do not come: they wait in a collective that this
        worker has left.
        """
        self._num_barriers += 1
        timeout = BARRIER_AFTER_FAILURE if failed else self._timeout
        value = ("failed" if failed else "done") + (", stop" if stop else "")
        values = exchange(self._store, self._rank, self._world_size, f"barrier {self._num_barriers}", value, timeout)
        if any("failed" in value for value in values):
            dist.destroy_process_group()
            self._open()
        return any("stop" in value for value in values)

    @contextmanager
    def heartbeat(self, on_silence: Callable[[str], None]) -> Iterator[None]:
        """A thread in which worker 0 counts up in the store and the others check it, inside the block.

        `on_silence(reason)` is called in the thread if worker 0 cannot run at all (it is suspended or its machine is
        cut off), not if it computes for long or its main thread hangs.
        """
        # The thread has a connection of its own: some calls block the other one for long.
        store = self._store.clone()  # pyright: ignore[reportAttributeAccessIssue]  (its stub lacks it)
        store.set_timeout(self._timeout)
        ended = threading.Event()
        target, arguments = (self._watch, (store, ended, on_silence)) if self._rank else (self._beat, (store, ended))
        thread = threading.Thread(target=target, args=arguments, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            # A process that exits while a thread uses the store is aborted. Where a machine is gone, a call takes long.
            thread.join(SHUTDOWN_GRACE_SECONDS)

    def _beat(self, store: dist.Store, ended: threading.Event) -> None:
        number = 0
        while not ended.wait(self._timeout.total_seconds() / HEARTBEAT_CHECKS):
            number += 1
            try:
                store.set(HEARTBEAT, str(number))
            except RuntimeError:  # the others, or the store's machine, are gone: the others report that
                return

    def _watch(self, store: dist.Store, ended: threading.Event, on_silence: Callable[[str], None]) -> None:
        last, unchanged, seconds = b"", 0, self._timeout.total_seconds()
        reason = f"no sign of life for {seconds:.0f} s (--timeout)"
        while unchanged < HEARTBEAT_CHECKS:
            if ended.wait(seconds / HEARTBEAT_CHECKS):
                return
            try:
                current = store.get(HEARTBEAT) if store.check([HEARTBEAT]) else b""
            except RuntimeError as error:
                reason = f"its store does not answer: {str(error).splitlines()[0]}"
                break
            unchanged = unchanged + 1 if current == last else 0
            last = current
        if not ended.is_set():
            on_silence(reason)
