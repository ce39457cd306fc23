"""Maps a function over items with a pool of processes; results come in the order of the items."""

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
"""Maximal number of submitted and not yet returned items per process; bounds the memory."""


class WorkerDied(RuntimeError):
    """A process of the pool died. items: indices of the items in progress."""

    def __init__(self, items: Sequence[int]) -> None:
        super().__init__("a worker process died")
        self.items = items


def in_order(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int, preloaded: Sequence[str] = ()
) -> Generator[Result, None, None]:
    """task(item) for each item, with `workers` processes (0: in this one). The task is sent to each process once.

    preloaded: modules that are imported once for all processes. Closing the generator ends the processes at once.
    WorkerDied: a process died. ValueError, OSError: raised by `task`; other errors of `task` become a RuntimeError with
    the traceback. If several items fail, the error of the first one is raised.
    """
    if workers == 0:
        yield from map(task, items)
        return
    # Not fork: the driver has threads. Not spawn: each process would import torch.
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


_task: Callable[[Any], Any]  # of this worker process


def _start(task: Callable[[Any], Any], parents_end: Connection) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver handles it
    threading.Thread(target=_exit_with_parent, args=(parents_end,), daemon=True).start()


def _run(item: Any) -> Any:
    return _task(item)


def _exit_with_parent(parents_end: Connection) -> None:
    """End this process when the driver closes its end of the pipe or is killed."""
    closed = select.poll()
    closed.register(parents_end.fileno(), 0)  # a hang-up is always reported
    closed.poll()
    os._exit(1)


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C, which would make them print a traceback; this one gets it later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
