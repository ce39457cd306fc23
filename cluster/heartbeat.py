"""Signs of life of the first worker, for whom the others may have to wait for hours while it computes alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from cluster.environment import SHUTDOWN_GRACE_SECONDS

BEATS = 20
"""So many looks in a row at which nothing has changed make a silence. Looks count, not seconds: a watcher that was
itself held up, with the whole machine perhaps, has not looked."""

KEY = "sign of life of the first worker"


class Heartbeat:
    """A thread of each worker: the first one's writes a number to the store now and then, the others' watch it.

    Only a process that cannot run at all is silent (it is stopped, its machine is cut off from this one): not one that
    computes, however long, nor one whose main thread hangs.
    store: shared by the workers; the thread uses a connection of its own, as some calls hold it for long.
    patience: seconds of silence after which `on_silence(text)` is called, in the thread, once.
    """

    def __init__(self, store: dist.Store, rank: int, patience: float, on_silence: Callable[[str], None]) -> None:
        self._store = store.clone()  # pyright: ignore[reportAttributeAccessIssue]  (its stub lacks it)
        self._rank, self._patience, self._on_silence = rank, patience, on_silence
        self._store.set_timeout(timedelta(seconds=patience))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch if rank else self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The worker leaves: it beats and watches no more."""
        self._over.set()
        # A process that ends while a thread is inside the store is aborted by it.
        self._thread.join(SHUTDOWN_GRACE_SECONDS)

    def _beat(self) -> None:
        number = 0
        while not self._over.wait(self._patience / BEATS):
            number += 1
            try:
                self._store.set(KEY, str(number))
            except RuntimeError:  # the others, or the store's machine, are gone: that is for them to say
                return

    def _watch(self) -> None:
        last, unchanged = b"", 0
        while not self._over.wait(self._patience / BEATS):
            try:
                seen = self._store.get(KEY) if self._store.check([KEY]) else b""
            except RuntimeError as error:
                self._say(f"its store does not answer: {str(error).splitlines()[0]}")
                return
            unchanged = unchanged + 1 if seen == last else 0
            last = seen
            if unchanged >= BEATS:
                self._say(f"no sign of life for {self._patience:.0f} s (--patience)")
                return

    def _say(self, what: str) -> None:
        if not self._over.is_set():
            self._on_silence(what)
