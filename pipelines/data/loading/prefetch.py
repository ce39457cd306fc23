"""Running an iterator ahead of whoever asks for its items."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """The items of a generator, made by a thread of its own before they are asked for.

    An error in the thread is raised by the `next` that would have given the item. The thread ends with the items, at
    `close`, and when this object is let go of; the item that it is at is finished first, and the generator closed.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        """depth: how many items may wait."""
        # SimpleQueue.put may be called where the garbage collector runs, inside any other call; a Condition may not.
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._made: SimpleQueue[T | _Failed] = SimpleQueue()
        for _ in range(depth):
            self._wanted.put(None)
        stopped = threading.Event()
        # The thread must not know this object, or nobody else could let go of it.
        arguments = (items, self._wanted, self._made, stopped)
        thread = threading.Thread(target=_work, args=arguments, name="ahead", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _end, thread, self._wanted, stopped, threading.current_thread())
        """Ends the thread; `next` then says StopIteration. Also called when the process exits."""

    def __next__(self) -> T:
        if not self.close.alive:
            raise StopIteration
        item = self._made.get()
        if isinstance(item, _Failed):
            self.close()
            raise item.error
        self._wanted.put(None)
        return item


class _Failed:
    """What an iterator raised instead of its next item; at its end StopIteration."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _work(
    items: Generator[T, None, None],
    wanted: SimpleQueue[None],
    made: SimpleQueue[T | _Failed],
    stopped: threading.Event,
) -> None:
    try:
        with contextlib.closing(items):
            while True:
                wanted.get()
                if stopped.is_set():
                    return
                made.put(next(items))
    except BaseException as error:  # whatever it is belongs to whoever waits for the item
        made.put(_Failed(error))


def _end(
    thread: threading.Thread, wanted: SimpleQueue[None], stopped: threading.Event, owner: threading.Thread
) -> None:
    stopped.set()
    wanted.put(None)
    # The garbage collector calls this in any thread, perhaps in one for which the thread to be joined waits.
    if threading.current_thread() is owner:
        thread.join()
