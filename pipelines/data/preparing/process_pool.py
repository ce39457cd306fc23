"""One function over many items by several processes, its results in the order of the items.

A process that dies, an error in it and a caller that stops early all end at once what is left: nothing waits for ever.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from cluster.environment import environment, thread_variables

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items that one process has at a time: the next lies ready when one is done."""

WINDOW = 4
"""Results per process that are held back at most while an earlier one is not there yet."""

FAREWELL_SECONDS = 10.0
"""How long a process whose pipe has ended may take to leave, so that its exit code is known."""


class WorkerDied(RuntimeError):
    """A process is gone. items: the numbers of those that it had. how: "SIGKILL" or "exit code 1"."""

    def __init__(self, items: Sequence[int], how: str) -> None:
        super().__init__(f"a worker process died ({how})")
        self.items = tuple(items)
        self.how = how


def in_order(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    preloaded: Sequence[str] = (),
) -> Generator[Result, None, None]:
    """task(item) for each item; by `workers` processes, which get `task` and the items pickled, or here (0).

    preloaded: modules that are imported once for all processes. Close the iterator to end the processes early.
    WorkerDied: one died. ValueError: `task` raised it, or an OSError; RuntimeError with the traceback: something else.
    The first item's error is raised, whichever process is the fastest.
    """
    if workers == 0:
        yield from map(task, items)
        return
    # Not fork: the driver has threads. Not spawn: each process would import torch, for seconds and by itself.
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    hands: list[_Hand] = []
    try:
        with _ignored_interrupt():
            for _ in range(min(workers, len(items))):
                hands.append(_Hand(context, task))
        given = taken = 0
        ready: dict[int, Result | _Raised] = {}
        while taken < len(items):
            limit = min(len(items), taken + WINDOW * len(hands))
            while given < limit and len((idlest := min(hands, key=lambda hand: len(hand.owed))).owed) < AHEAD:
                idlest.give(given, items[given])
                given += 1
            for hand in _with_news(hands):
                number, result = hand.take()
                ready[number] = result
            while taken in ready:
                yield _opened(ready.pop(taken))
                taken += 1
    finally:
        for hand in hands:
            hand.end()


class _Raised:
    """An error in a process. expected: a ValueError or OSError, which says what is wrong by itself."""

    def __init__(self, error: Exception) -> None:
        self.expected = isinstance(error, (ValueError, OSError))
        self.text = str(error) if self.expected else "".join(traceback.format_exception(error))


def _opened(result: Any) -> Any:
    if isinstance(result, _Raised):
        raise ValueError(result.text) if result.expected else RuntimeError(f"in a worker process: {result.text}")
    return result


class _Hand:
    """A worker process, seen from the driver."""

    def __init__(self, context: ForkServerContext, task: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.owed: deque[int] = deque()
        """The numbers of the items that it has."""
        self._process = context.Process(target=_work, args=(theirs, task), daemon=True)
        with environment(thread_variables(1)):  # every core has a process of its own
            self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def give(self, number: int, item: Any) -> None:
        with suppress(BrokenPipeError):  # it is dead: `take` finds the end of the pipe and says so
            self.pipe.send((number, item))
        self.owed.append(number)

    def take(self) -> tuple[int, Any]:
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(FAREWELL_SECONDS)
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerDied(self.owed, how) from None
        return self.owed.popleft(), result

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _with_news(hands: Sequence[_Hand]) -> list[_Hand]:
    pipes = connection.wait([hand.pipe for hand in hands])
    return [hand for hand in hands if hand.pipe in pipes]


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C, which reaches the whole terminal; this one takes it afterwards.

    Without it one that is about to start would fill the screen with its traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, task: Callable[[Any], Any]) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver ends its workers
    threading.Thread(target=_die_with, args=(pipe.fileno(),), daemon=True).start()
    while True:
        try:
            _, item = pipe.recv()
        except EOFError:
            return
        try:
            result = task(item)
        except Exception as error:
            result = _Raised(error)
        try:
            pipe.send(result)
        except BrokenPipeError:
            return


def _die_with(descriptor: int) -> None:
    """End this process when the driver's end of the pipe is closed, be it that the driver was killed.

    The kernel's signal for a parent's death would not do: the parent is the fork server, which outlives the driver as
    long as a worker lives.
    """
    ended = select.poll()
    ended.register(descriptor, 0)  # its end is always reported
    ended.poll()
    os._exit(1)
