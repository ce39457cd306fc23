"""Make the items of a generator in a thread, before they are asked for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, `depth` of them made in advance by one thread, which also closes `items`.

    An error is raised where its item would come. The thread starts with the first `next` and ends with the items, or
    when this generator is closed or garbage-collected; the item that it is making is finished first.
    """
    owner, pool = threading.current_thread(), ThreadPoolExecutor(1, "prefetch")
    pending = deque(pool.submit(next, items, _END) for _ in range(depth))
    try:
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, items, _END))
            yield item  # pyright: ignore[reportReturnType]  (_END is none of them)
    finally:
        for future in pending:
            future.cancel()
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
            pool.submit(items.close)
        # The garbage collector runs this in any thread, perhaps in one for which the pool's thread waits.
        pool.shutdown(wait=threading.current_thread() is owner)
