"""The driver's side of workers that are processes of this machine, started with `multiprocessing`."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from cluster.environment import LOOPBACK, SHUTDOWN_GRACE_SECONDS, environment, thread_variables
from cluster.group import Group
from cluster.local.worker import WorkerSpec, run_worker
from cluster.outcomes import OutcomeTracker, death_notice
from cluster.scratch import scratch
from cluster.stopping import stop_on_sigterm
from cluster.worker import STOPPED, Body, OnEvent, Outcome

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often the driver checks whether it was asked to stop."""


def run_on_processes(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one group of `group.workers` processes, or on `group.parallel` groups of one process each.

    A group that loses a worker is replaced and starts its item again, `group.max_failures` times in all. After that its
    item fails. If it is the only group, the remaining items fail too; with `group.parallel`, it is still replaced.
    """
    if torch.cuda.is_available() and group.workers > (count := torch.cuda.device_count()):
        raise ValueError(
            f"--workers {group.workers} needs as many GPUs, this machine has {count}: use --workers {count}"
        )
    tracker = OutcomeTracker(len(items), group.world_size)
    with scratch("launch-") as folder, stop_on_sigterm() as stop_signal:
        pool = WorkerPool(body, items, group, tracker, folder)
        deadline = math.inf
        try:
            pool.start()
            while tracker.pending() and time.monotonic() < deadline:
                if stop_signal.stop_requested and deadline == math.inf:
                    pool.stop()
                    deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
                pool.assign_items()
                for lost in pool.receive(on_event):
                    pool.replace(lost)
            if deadline == math.inf:
                for each in pool.groups:
                    each.shut_down()
        finally:
            for each in pool.groups:
                each.kill()
        tracker.fail(tracker.pending(), STOPPED, killed=True)
    return tracker.outcomes()


class WorkerPool:
    """The worker groups, the items that wait for one, and the replacement of a group that lost a worker."""

    def __init__(self, body: Body, items: Sequence[Any], group: Group, tracker: OutcomeTracker, folder: Path) -> None:
        self._items, self._group, self._tracker = items, group, tracker
        self._waiting = deque(range(len(items)))
        self._failures, self._stopping = 0, False
        self.groups = [_WorkerGroup(slot, body, group, folder) for slot in range(min(group.parallel, len(items)))]

    def start(self) -> None:
        for each in self.groups:
            each.start()

    def assign_items(self) -> None:
        """Give each idle group the next item."""
        for each in self.groups:
            if each.item is None and self._waiting:
                number = self._waiting.popleft()
                each.send_item(number, self._items[number])

    def receive(self, on_event: OnEvent) -> list[_WorkerGroup]:
        """Wait a moment for messages, handle them, and return the groups in which the pipe of a worker was closed."""
        owners = {pipe: (group, rank) for group in self.groups for rank, pipe in enumerate(group.pipes)}
        for pipe in connection.wait(list(owners), POLL_SECONDS):
            assert isinstance(pipe, Connection)
            group, rank = owners[pipe]
            try:
                kind, number, payload = pipe.recv()
            except (EOFError, ConnectionResetError):
                group.dead.append(rank)
                continue
            if kind == "event":
                on_event(number, payload)
            elif self._tracker.report(number, rank, payload):
                group.item = None
        return [group for group in self.groups if group.dead]

    def stop(self) -> None:
        """Ask all workers to stop. Workers that die from now on are not replaced."""
        self._stopping = True
        for group in self.groups:
            for process in group.processes:
                process.terminate()

    def replace(self, group: _WorkerGroup) -> None:
        """End a group that lost a worker. Start it again if there is work left for it."""
        lost = [] if group.item is None else [group.item]
        notice, killed = group.end_after_death()
        if self._stopping:
            self._tracker.fail([*lost, *self._waiting], STOPPED, killed=True)
            self._waiting.clear()
        elif self._group.max_failures == -1 or self._failures < self._group.max_failures:
            self._failures += 1
            cause = str(notice.error).partition(";")[0]
            log.warning("%s: it is replaced (%d of %d times)", cause, self._failures, self._group.max_failures)
            self._tracker.restart(self._group.world_size)
            self._waiting.extendleft(lost)
        else:
            if self._group.parallel == 1:
                lost.extend(self._waiting)
                self._waiting.clear()
            self._tracker.fail(lost, notice, killed)
        if self._waiting:
            group.start()
        else:
            self.groups.remove(group)


class _WorkerGroup:
    """`group.world_size` processes that share each item.

    slot: its number among the groups. item: the number of the item that it works on, None if idle.
    dead: the ranks whose pipes are closed.
    """

    def __init__(self, slot: int, body: Body, group: Group, folder: Path) -> None:
        self._slot, self._body, self._group, self._folder = slot, body, group, folder
        self.item: int | None = None
        self.processes: list[SpawnProcess] = []
        self.pipes: list[Connection] = []
        self.dead: list[int] = []

    def start(self) -> None:
        """Start the processes, in place of earlier ones."""
        self.item, self.processes, self.pipes, self.dead = None, [], [], []
        context, group = get_context("spawn"), self._group
        store = str(Path(tempfile.mkdtemp(dir=self._folder)) / "store")
        loopback = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK)}
        with environment(loopback | thread_variables(group.threads)):
            for rank in range(group.world_size):
                ours, theirs = context.Pipe()
                spec = WorkerSpec(
                    rank, group.world_size, rank + self._slot, group.threads, store, os.getpid(), group.timeout
                )
                process = context.Process(target=run_worker, args=(self._body, spec, theirs), name=f"worker {rank}")
                process.start()
                self.processes.append(process)
                self.pipes.append(ours)
                theirs.close()  # so that the pipe is closed when the worker dies

    def send_item(self, number: int, item: Any) -> None:
        self.item = number
        self._send((number, item))

    def _send(self, message: Any) -> None:
        for pipe in self.pipes:
            with suppress(BrokenPipeError):  # the worker is dead: `receive` finds the closed pipe
                pipe.send(message)

    def shut_down(self) -> None:
        """Tell the workers that there are no more items, and wait until they have exited."""
        self._send(None)
        for process in self.processes:
            process.join(SHUTDOWN_GRACE_SECONDS)

    def end_after_death(self) -> tuple[Outcome, bool]:
        """End the group; returns the outcome of its item, and whether a worker was killed from outside."""
        for rank in self.dead:
            self.processes[rank].join(SHUTDOWN_GRACE_SECONDS)
        # A death breaks the others' connections, and they exit: a signal is closer to the cause than an exit code.
        code, rank = min((self.processes[rank].exitcode or 0, rank) for rank in self.dead)
        self.kill()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return death_notice(rank, len(self.processes), how), code < 0

    def kill(self) -> None:
        """End the workers that still run."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
