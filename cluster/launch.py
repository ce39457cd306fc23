"""Run a list of items with one function: in this process, on local processes, or on a Ray Train worker group.

An item is any picklable value and a body is a module-level function `body(item, worker)`. What the body returns on the
first worker is the item's outcome; what it emits on the way reaches the driver as events.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cluster.group import Group
from cluster.heartbeat import Heartbeat
from cluster.stopping import Notice, Stopped, sigterm_notice

Body = Callable[[Any, "Worker"], Any]
OnEvent = Callable[[int, dict[str, Any]], None]
Post = Callable[[str, int, Any], None]
"""How a worker reports: `post(kind, item number, payload)` with the kinds "event" and "outcome"."""

PATIENCE_WITH_THE_FIRST = timedelta(hours=6)
"""How long workers wait for the first one while it computes alone, and gives signs of life: scoring may take hours."""

MEETING_AFTER_FAILURE = timedelta(seconds=30)
"""How long a worker whose item failed waits for the others before it ends the group."""

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""The network interface of workers that are all on this machine."""

START_AGAIN = "start the same command again: the run goes on from its last checkpoint"


@dataclass(frozen=True)
class Worker:
    """One process that runs a body.

    rank, world_size: its number, from 0, among the workers that share the item.
    device: where it computes.
    control: a gloo group of these workers for small objects and for waiting; None when world_size is 1.
    emit: sends an event (a dict of plain, picklable data) to the driver without waiting for it.
    notice: what this worker has been asked from outside; `cluster.stopping.Vote` makes the workers agree on it.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None
    emit: Callable[[dict[str, Any]], None]
    notice: Notice = field(default_factory=Notice)


@dataclass(frozen=True)
class Outcome:
    """What became of an item: the value its body returned, or an error ("ValueError: text") with its traceback.

    stopped: it was ended, or not begun, because the command was asked to stop.
    """

    value: Any = None
    error: str | None = None
    traceback: str | None = None
    stopped: bool = False


STOPPED = Outcome(error=str(Stopped()), stopped=True)


def launch(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run `body(item, worker)` for each item and return their outcomes in order.

    An item that raises an Exception gets its error as outcome and the next item runs; a worker that dies ends its
    group: it is started again, or the items without outcome say so. On SIGTERM the workers are told to stop, and what
    they have not finished comes back as stopped. `on_event(item number, event)` is called in the calling thread.
    """
    if not items:
        return []
    if group.launcher == "ray":
        from cluster.ray.trainer import run_on_ray

        return run_on_ray(body, items, group, on_event)
    if group.workers == 0 and group.parallel == 1:
        return _run_here(body, items, group, on_event)
    from cluster.local.pool import run_on_processes

    return run_on_processes(body, items, group, on_event)


def _run_here(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(group.threads)
    try:
        with sigterm_notice() as notice:
            return [
                attempt(body, item, Worker(0, 1, device, None, partial(on_event, number), notice))
                if not notice()
                else STOPPED
                for number, item in enumerate(items)
            ]
    finally:
        torch.set_num_threads(threads)


def attempt(body: Body, item: Any, worker: Worker) -> Outcome:
    """Run one item; an Exception becomes the outcome's error. Only the first worker's value is kept.

    LostContact where another worker cannot be reached: this is no fault of the item.
    """
    try:
        value = body(item, worker)
        pickle.dumps(value)  # here, where it can still become the item's error instead of a worker's death
        return Outcome(value=value if worker.rank == 0 else None)
    except Stopped:
        return STOPPED
    except Exception as error:
        if worker.world_size > 1 and _is_broken_connection(error):
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise LostContact(f"worker {worker.rank} lost the others ({reason}); {START_AGAIN}") from error
        return Outcome(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


class LostContact(ConnectionError):
    """Another worker of the item is dead, cut off, or has not answered within the group's patience."""


def _is_broken_connection(error: Exception) -> bool:
    # Gloo's own errors are plain RuntimeErrors that name the file they come from.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its number among those that share an item, its device, and what ties it to them."""

    rank: int
    world_size: int
    device: torch.device
    links: Links | None


def work_through(body: Body, tasks: Iterable[tuple[int, Any]], place: Place, post: Post, notice: Notice) -> None:
    """The life of one worker: run the tasks (item number, item) in order, post each outcome, meet the others.

    Once one of the workers is asked to stop, no further item is begun. Raises LostContact, or RuntimeError where the
    others do not come to the meeting: the worker must then exit. Where the first worker falls silent, it exits itself.
    """
    links, ended = place.links, False
    current = -1

    def leave(silence: str) -> None:
        error = f"worker {place.rank} lost worker 0: {silence}; {START_AGAIN}"
        if current >= 0:
            post("outcome", current, Outcome(error=error))
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits in a collective that never ends

    watched = links.watched(leave) if links else nullcontext()
    with watched:
        for number, item in tasks:
            current = number
            control = links.control if links else None
            emit = partial(post, "event", number)
            worker = Worker(place.rank, place.world_size, place.device, control, emit, notice)
            ended = ended or (links is None and notice())
            try:
                outcome = STOPPED if ended else attempt(body, item, worker)
            except LostContact as error:
                post("outcome", number, Outcome(error=str(error), traceback=traceback.format_exc()))
                raise
            post("outcome", number, outcome)
            if links and not ended:
                ended = links.meet(failed=outcome.error is not None, stopping=notice())


def exchange(
    store: dist.Store, rank: int, world_size: int, question: str, answer: str, patience: timedelta
) -> list[str]:
    """What each worker answers to a question, in the order of ranks. RuntimeError where one does not, in time."""
    keys = [f"{question} rank {other}" for other in range(world_size)]
    store.set(keys[rank], answer)
    store.wait(keys, patience)
    return [store.get(key).decode() for key in keys]


class Links:
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


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that holds the numeric libraries of a new process to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These environment variables inside the block, for what is started or read there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
