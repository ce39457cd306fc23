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
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from cluster.environment import LOOPBACK, SHUTDOWN_GRACE_SECONDS, environment, thread_variables
from cluster.group import Group
from cluster.local.process import WorkerSpec, serve
from cluster.outcomes import OutcomeTracker, death_notice
from cluster.stopping import sigterm_notice
from cluster.worker import STOPPED, Body, OnEvent, Outcome

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often the driver looks up from its workers, whether it was asked to stop."""


def run_on_processes(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one group of `group.workers` processes, or on `group.parallel` single ones side by side.

    A dead worker's team is replaced, and takes up its item again, as often as `group.max_failures` says. After that its
    item fails; a single team takes the remaining items down with it, of several the dead one is replaced.
    """
    _check_devices(group)
    ledger = OutcomeTracker(len(items), group.world_size)
    with tempfile.TemporaryDirectory(prefix="launch-") as folder, sigterm_notice() as asked_to_stop:
        crew = WorkerPool(body, items, group, ledger, folder)
        stop_by = math.inf
        try:
            crew.start()
            while ledger.unsettled():
                if asked_to_stop() and stop_by == math.inf:
                    crew.stop()
                    stop_by = time.monotonic() + SHUTDOWN_GRACE_SECONDS
                if time.monotonic() > stop_by:
                    break
                crew.deal()
                for team in _listen(crew.teams, ledger, on_event):
                    crew.replace(team)
            if stop_by == math.inf:
                for team in crew.teams:
                    team.dismiss()
        finally:
            for team in crew.teams:
                team.kill()
        ledger.give_up(ledger.unsettled(), STOPPED, killed=True)
    return ledger.outcomes()


class WorkerPool:
    """The teams, the items that wait for them, and what is done when a team is lost."""

    def __init__(self, body: Body, items: Sequence[Any], group: Group, ledger: OutcomeTracker, folder: str) -> None:
        self._body, self._items, self._group, self._ledger, self._folder = body, items, group, ledger, folder
        self._waiting = deque(range(len(items)))
        self._failures, self._stopping = 0, False
        self.teams: list[_Team] = []

    def start(self) -> None:
        for slot in range(min(self._group.parallel, len(self._items))):
            self.teams.append(_Team(slot))
            self.teams[-1].start(self._body, self._group, self._folder)

    def deal(self) -> None:
        """Give each idle team the next item."""
        for team in self.teams:
            if team.number is None and self._waiting:
                number = self._waiting.popleft()
                team.give(number, self._items[number])

    def stop(self) -> None:
        """Tell all workers that they are to stop; those that die of it are not replaced."""
        self._stopping = True
        for team in self.teams:
            for member in team.members:
                member.process.terminate()

    def replace(self, team: _Team) -> None:
        """A team that lost a worker ends; another takes its place if there is something left to do for it."""
        lost = [] if team.number is None else [team.number]
        notice, killed = team.bury()
        if self._stopping:
            self._ledger.give_up([*lost, *self._waiting], STOPPED, killed=True)
            self._waiting.clear()
        elif self._group.max_failures == -1 or self._failures < self._group.max_failures:
            self._failures += 1
            cause = str(notice.error).partition(";")[0]
            log.warning("%s: it is replaced (%d of %d times)", cause, self._failures, self._group.max_failures)
            self._ledger.begin_again(self._group.world_size)
            self._waiting.extendleft(lost)
        else:
            if self._group.parallel == 1:
                lost.extend(self._waiting)
                self._waiting.clear()
            self._ledger.give_up(lost, notice, killed)
        if self._waiting:
            team.start(self._body, self._group, self._folder)
        else:
            self.teams.remove(team)


def _check_devices(group: Group) -> None:
    if torch.cuda.is_available() and group.workers > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"--workers {group.workers} needs as many GPUs, this machine has {count}: use --workers {count}"
        )


def _listen(teams: Sequence[_Team], ledger: OutcomeTracker, on_event: OnEvent) -> list[_Team]:
    """Wait a moment for messages, take them down, and return the teams in which a worker's pipe has ended."""
    owners = {member.pipe: (team, rank) for team in teams for rank, member in enumerate(team.members)}
    broken: list[_Team] = []
    for pipe in connection.wait(list(owners), POLL_SECONDS):
        assert isinstance(pipe, Connection)
        team, rank = owners[pipe]
        try:
            kind, number, payload = pipe.recv()
        except (EOFError, ConnectionResetError):
            team.silent.append(rank)
            if team not in broken:
                broken.append(team)
            continue
        if kind == "event":
            on_event(number, payload)
        elif ledger.report(number, rank, payload):
            team.number = None
    return broken


@dataclass(frozen=True)
class _Member:
    process: SpawnProcess
    pipe: Connection


class _Team:
    """Processes that share each item: one world of `group.world_size` ranks."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        """Its number among the teams."""
        self.number: int | None = None
        """The item it works at."""
        self.members: list[_Member] = []
        self.silent: list[int] = []
        """The ranks whose pipes have ended."""

    def start(self, body: Body, group: Group, folder: str) -> None:
        """Start the processes, in place of those that were there."""
        self.number, self.members, self.silent = None, [], []
        context = get_context("spawn")
        meeting_point = str(Path(tempfile.mkdtemp(dir=folder)) / "store")
        loopback = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK)}
        with environment(loopback | thread_variables(group.threads)):
            for rank in range(group.world_size):
                ours, theirs = context.Pipe()
                seat = WorkerSpec(
                    rank,
                    group.world_size,
                    rank + self.slot,
                    group.threads,
                    meeting_point,
                    os.getpid(),
                    group.patience,
                )
                process = context.Process(target=serve, args=(body, seat, theirs), name=f"worker {rank}")
                process.start()
                self.members.append(_Member(process, ours))
                theirs.close()  # so that the pipe ends with the worker

    def give(self, number: int, item: Any) -> None:
        """Let all members run this item."""
        self.number = number
        for member in self.members:
            _send(member, (number, item))

    def bury(self) -> tuple[Outcome, bool]:
        """End a team that lost a worker; returns what to say of it, and whether the worker was killed from outside."""
        for rank in self.silent:
            self.members[rank].process.join(SHUTDOWN_GRACE_SECONDS)
        # One death takes the others along through broken connections: a signal is nearer to the cause than an exit.
        code, rank = min((self.members[rank].process.exitcode or 0, rank) for rank in self.silent)
        self.kill()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return death_notice(rank, len(self.members), how), code < 0

    def dismiss(self) -> None:
        """Tell the members that no item comes, and wait until they have left."""
        for member in self.members:
            _send(member, None)
        for member in self.members:
            member.process.join(SHUTDOWN_GRACE_SECONDS)

    def kill(self) -> None:
        """End the members that are still there."""
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.process.join()
            member.pipe.close()


def _send(member: _Member, message: Any) -> None:
    try:
        member.pipe.send(message)
    except BrokenPipeError:
        log.debug("%s is gone; the end of its pipe says so to the driver's loop", member.process.name)
