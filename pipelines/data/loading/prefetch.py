"""Compute the items of a generator in advance, in a thread."""

import contextlib
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, `depth` of them computed in advance by one thread, which also closes `items`.

    An error is raised in place of its item. The thread starts at the first `next`. It ends after the last item, or when
    this generator is closed or garbage-collected, after the item in progress.
    """
    owner, pool = threading.current_thread(), ThreadPoolExecutor(1, "prefetch")
    pending = deque(pool.submit(next, items, _END) for _ in range(depth))
    try:
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, items, _END))
            yield item  # pyright: ignore[reportReturnType]  (not _END)
    finally:
        for future in pending:
            future.cancel()
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
            pool.submit(items.close)
        # The garbage collector may run this in a thread for which the pool's thread waits.
        pool.shutdown(wait=threading.current_thread() is owner)
