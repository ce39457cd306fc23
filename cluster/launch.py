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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

Body = Callable[[Any, "Worker"], Any]
OnEvent = Callable[[int, dict[str, Any]], None]
Post = Callable[[str, int, Any], None]
"""How a worker reports: `post(kind, item number, payload)` with the kinds "event" and "outcome"."""

PATIENCE = timedelta(hours=6)
"""How long workers wait for each other: the first may compute alone for hours."""

MEETING_AFTER_FAILURE = timedelta(seconds=30)
"""How long a worker whose item failed waits for the others before it ends the group."""

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""The network interface of workers that are all on this machine."""

START_AGAIN = "start the same command again: the run goes on from its last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Group:
    """How to run.

    launcher: "local" (this machine's processes) or "ray" (a Ray Train worker group).
    workers: 0 for this process; N for one group of N processes that works through the items together.
    parallel: with workers <= 1, that many single-process workers side by side, each taking the next item.
    threads: torch and OMP threads of each worker.
    storage: absolute folder; Ray Train keeps its own files in its subfolder "ray".
    """

    storage: str
    launcher: Literal["local", "ray"] = "local"
    workers: int = 0
    parallel: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "ray"):
            raise ValueError(f"no launcher {self.launcher!r}: use --launcher local or --launcher ray")
        if self.workers < 0 or self.parallel < 1 or self.threads < 1:
            raise ValueError(
                f"--workers {self.workers} --parallel {self.parallel} --threads {self.threads} is not possible: "
                "use 0 or more workers, and 1 or more for the other two"
            )
        if self.parallel > 1 and self.workers > 1:
            raise ValueError(
                f"--workers {self.workers} with --parallel {self.parallel}: either several workers share each item "
                f"(--workers {self.workers} --parallel 1) or single workers take items side by side "
                f"(--workers 1 --parallel {self.parallel})"
            )
        if self.launcher == "ray" and self.workers == 0 and self.parallel == 1:
            raise ValueError("--launcher ray needs --workers 1 or more")
        if not Path(self.storage).is_absolute():
            raise ValueError(f"storage must be an absolute folder, not {self.storage!r}")

    @property
    def world_size(self) -> int:
        """How many workers share one item."""
        return max(self.workers, 1)


@dataclass(frozen=True)
class Worker:
    """One process that runs a body.

    rank, world_size: its number, from 0, among the workers that share the item.
    device: where it computes.
    control: a gloo group of these workers for small objects and for waiting; None when world_size is 1.
    emit: sends an event (a dict of plain, picklable data) to the driver without waiting for it.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None
    emit: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What became of an item: the value its body returned, or an error ("ValueError: text") with its traceback."""

    value: Any = None
    error: str | None = None
    traceback: str | None = None


def launch(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run `body(item, worker)` for each item and return their outcomes in order.

    An item that raises an Exception gets its error as outcome and the next item runs; a worker that dies ends its
    group, and the items without outcome say so. `on_event(item number, event)` is called in the calling thread.
    """
    if not items:
        return []
    if group.launcher == "ray":
        from cluster.ray_train import run_on_ray

        return run_on_ray(body, items, group, on_event)
    if group.workers == 0 and group.parallel == 1:
        return _run_here(body, items, group, on_event)
    from cluster.local import run_on_processes

    return run_on_processes(body, items, group, on_event)


def _run_here(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(group.threads)
    try:
        return [
            attempt(body, item, Worker(0, 1, device, None, partial(on_event, number)))
            for number, item in enumerate(items)
        ]
    finally:
        torch.set_num_threads(threads)


def attempt(body: Body, item: Any, worker: Worker) -> Outcome:
    """Run one item; an Exception becomes the outcome's error. Only the first worker's value is kept."""
    try:
        value = body(item, worker)
        pickle.dumps(value)  # here, where it can still become the item's error instead of a worker's death
        return Outcome(value=value if worker.rank == 0 else None)
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def work_through(
    body: Body,
    tasks: Iterable[tuple[int, Any]],
    rank: int,
    world_size: int,
    device: torch.device,
    links: Links | None,
    post: Post,
) -> None:
    """The life of one worker: run the tasks (item number, item) in order, post each outcome, meet the others.

    Raises RuntimeError where the others do not come to the meeting: the worker must then exit.
    """
    for number, item in tasks:
        control = links.control if links else None
        worker = Worker(rank, world_size, device, control, emit=partial(post, "event", number))
        outcome = attempt(body, item, worker)
        post("outcome", number, outcome)
        if links:
            links.meet(failed=outcome.error is not None)


class Links:
    """What ties a worker to the others of its world: torch's default group, and a gloo group for the body's own use."""

    def __init__(self, store: dist.Store, backend: str, rank: int, world_size: int) -> None:
        self._store, self._backend, self._rank, self._world_size = store, backend, rank, world_size
        self._num_meetings = 0
        self._open()

    def meet(self, failed: bool) -> None:
        """Wait until all workers have ended the item; if one failed, make the groups anew.

        They meet at the store, as a failed item may leave a collective in flight on some workers, with which the next
        one would pair up. Raises RuntimeError where the others do not come: they wait in a collective that this worker
        has left.
        """
        self._num_meetings += 1
        keys = [f"meeting {self._num_meetings} rank {rank}" for rank in range(self._world_size)]
        self._store.set(keys[self._rank], "failed" if failed else "done")
        self._store.wait(keys, MEETING_AFTER_FAILURE if failed else PATIENCE)
        if any(self._store.get(key) == b"failed" for key in keys):
            self.close()
            self._open()

    def close(self) -> None:
        """Leave the groups."""
        dist.destroy_process_group()

    def _open(self) -> None:
        if not dist.is_initialized():  # Ray Train opens the first default group itself
            store = dist.PrefixStore(f"groups after meeting {self._num_meetings}", self._store)
            dist.init_process_group(
                self._backend, store=store, rank=self._rank, world_size=self._world_size, timeout=PATIENCE
            )
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup), "every worker is a member"
        self.control = control


class Ledger:
    """What the driver knows of each item: its workers' reports, put together to one outcome per item."""

    def __init__(self, num_items: int, world_size: int) -> None:
        self._world_size = world_size
        self._reports: list[dict[int, Outcome]] = [{} for _ in range(num_items)]
        self._settled: dict[int, Outcome] = {}

    def report(self, number: int, rank: int, outcome: Outcome) -> bool:
        """Take down one worker's outcome; True when this settles the item: all its workers have reported."""
        reports = self._reports[number]
        reports[rank] = outcome
        if len(reports) < self._world_size:
            return False
        failed = [rank for rank in sorted(reports) if reports[rank].error is not None]
        self._settled[number] = self._named(failed[0], reports[failed[0]]) if failed else reports[0]
        return True

    def give_up(self, numbers: Iterable[int], notice: Outcome, killed: bool) -> None:
        """Settle items whose workers are gone: with the failure that was reported first, or else with `notice`.

        killed: a worker was ended from outside; what the others report then are only its broken connections.
        """
        for number in numbers:
            reported = (self._named(rank, report) for rank, report in self._reports[number].items() if report.error)
            self._settled.setdefault(number, notice if killed else next(reported, notice))

    def unsettled(self) -> list[int]:
        return [number for number in range(len(self._reports)) if number not in self._settled]

    def outcomes(self) -> list[Outcome]:
        """The outcomes of all items, in order."""
        return [self._settled[number] for number in range(len(self._reports))]

    def _named(self, rank: int, outcome: Outcome) -> Outcome:
        if rank == 0:
            return outcome
        return Outcome(error=f"{outcome.error} (worker {rank} of {self._world_size})", traceback=outcome.traceback)


def death_notice(rank: int, num_workers: int, how: str) -> Outcome:
    """The outcome of items that a worker's death left unfinished."""
    who = "the worker" if num_workers == 1 else f"worker {rank} of {num_workers}"
    return Outcome(error=f"{who} died ({how}); {START_AGAIN}")


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
