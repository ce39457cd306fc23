"""One function over many items by a pool of processes; the results come in the order of the items."""

from __future__ import annotations

import os
import select
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cluster.environment import environment, thread_variables

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 4
"""Items per process that are submitted and not yet returned, at most: this bounds the memory."""


class WorkerDied(RuntimeError):
    """A process of the pool died. items: the numbers of the items that were being worked on."""

    def __init__(self, items: Sequence[int]) -> None:
        super().__init__("a worker process died")
        self.items = items


def in_order(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    preloaded: Sequence[str] = (),
) -> Generator[Result, None, None]:
    """task(item) for each item, by `workers` processes; 0: in this process. The task is sent to each process once.

    preloaded: modules that are imported once for all processes. Closing the generator ends the processes at once.
    WorkerDied: a process died. ValueError, OSError: raised by `task`; RuntimeError with the traceback: another error
    of it. The error of the first item is raised, whichever process is the fastest.
    """
    if workers == 0:
        yield from map(task, items)
        return
    # Not fork: the driver has threads. Not spawn: each process would import torch by itself.
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    parents_end, alive = context.Pipe(duplex=False)
    workers = min(workers, len(items))
    pool = ProcessPoolExecutor(workers, context, _start, (task, parents_end))
    waiting, pending, returned = iter(items), deque[Future[Any]](), 0
    try:
        with _ignored_interrupt(), environment(thread_variables(1)):  # each process uses one core
            pending.extend(pool.submit(_run, item) for item in islice(waiting, WINDOW * workers))
        while pending:
            result = pending.popleft().result()
            returned += 1
            pending.extend(pool.submit(_run, item) for item in islice(waiting, 1))
            yield result
    except BrokenProcessPool:
        raise WorkerDied(range(returned, min(returned + WINDOW * workers, len(items)))) from None
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise RuntimeError(f"in a worker process: {''.join(traceback.format_exception(error))}") from error
    finally:
        alive.close()  # ends the processes, also in the middle of an item
        pool.shutdown(cancel_futures=True)
        parents_end.close()


_task: Callable[[Any], Any]
"""What this process of a pool runs."""


def _start(task: Callable[[Any], Any], parents_end: Connection) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver handles it
    threading.Thread(target=_exit_with_parent, args=(parents_end,), daemon=True).start()


def _run(item: Any) -> Any:
    return _task(item)


def _exit_with_parent(parents_end: Connection) -> None:
    """End this process when the driver's end of the pipe is closed, also because the driver was killed."""
    closed = select.poll()
    closed.register(parents_end.fileno(), 0)  # a hang-up is always reported
    closed.poll()
    os._exit(1)


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C; this process receives it afterwards.

    Without this, a process that is just starting would print its traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
