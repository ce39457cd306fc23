"""Workers that are processes of this machine, started with `multiprocessing` and linked by torch's process groups."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.launch import (
    LOOPBACK,
    Body,
    Group,
    Ledger,
    Links,
    OnEvent,
    Outcome,
    death_notice,
    environment,
    thread_variables,
    work_through,
)

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names the signal sent to this process when its parent dies."""

FAREWELL_SECONDS = 20.0
"""How long workers that were told to stop may take before they are killed."""


def run_on_processes(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one group of `group.workers` processes, or on `group.parallel` single ones side by side.

    A dead worker fails the item of its team. A single team takes the remaining items down with it; of several, the
    dead one is replaced.
    """
    _check_devices(group)
    ledger = Ledger(len(items), group.world_size)
    waiting = deque(range(len(items)))
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        teams: list[_Team] = []
        try:
            for slot in range(min(group.parallel, len(items))):
                teams.append(_Team(slot))
                teams[-1].start(body, group, folder)
            while ledger.unsettled():
                for team in teams:
                    if team.number is None and waiting:
                        number = waiting.popleft()
                        team.give(number, items[number])
                for team in _listen(teams, ledger, on_event):
                    lost = [] if team.number is None else [team.number]
                    if group.parallel == 1:
                        lost.extend(waiting)
                        waiting.clear()
                    ledger.give_up(lost, *team.bury())
                    if waiting:
                        team.start(body, group, folder)
                    else:
                        teams.remove(team)
            for team in teams:
                team.dismiss()
        finally:
            for team in teams:
                team.kill()
    return ledger.outcomes()


def _check_devices(group: Group) -> None:
    if torch.cuda.is_available() and group.workers > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"--workers {group.workers} needs as many GPUs, this machine has {count}: use --workers {count}"
        )


def _listen(teams: Sequence[_Team], ledger: Ledger, on_event: OnEvent) -> list[_Team]:
    """Wait for messages, take them down, and return the teams in which a worker's pipe has ended."""
    owners = {member.pipe: (team, rank) for team in teams for rank, member in enumerate(team.members)}
    broken: list[_Team] = []
    for pipe in connection.wait(list(owners)):
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
                seat = _Seat(rank, group.world_size, rank + self.slot, group.threads, meeting_point, os.getpid())
                process = context.Process(target=_serve, args=(body, seat, theirs), name=f"worker {rank}")
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
            self.members[rank].process.join(FAREWELL_SECONDS)
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
            member.process.join(FAREWELL_SECONDS)

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


@dataclass(frozen=True)
class _Seat:
    """What a worker process is told of its place."""

    rank: int
    world_size: int
    device_number: int
    threads: int
    meeting_point: str
    parent: int


def _serve(body: Body, seat: _Seat, pipe: Connection) -> None:
    """The main function of a worker process."""
    _die_with_parent(seat.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver ends its workers
    torch.set_num_threads(seat.threads)
    outbox = _Outbox(pipe)
    try:
        device = _claim_device(seat.device_number)
        links = None
        if seat.world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = dist.FileStore(seat.meeting_point, seat.world_size)
            links = Links(store, backend, seat.rank, seat.world_size)
        work_through(body, iter(pipe.recv, None), seat.rank, seat.world_size, device, links, outbox.post)
        outbox.close()
        if links:
            links.close()
    except Exception:
        traceback.print_exc()
        outbox.close()
        sys.stderr.flush()
        os._exit(1)  # a normal exit would wait for collectives that never end


def _claim_device(number: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the driver dies, however it dies.

    Only Linux can: elsewhere a worker ends with its pipe, when it asks for its next item.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


class _Outbox:
    """Sends messages to the driver from a thread of its own, so that a slow driver never delays the training."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def post(self, kind: str, number: int, payload: Any) -> None:
        """Queue one message, as it is now: what the caller changes later is not sent."""
        self._messages.put(pickle.dumps((kind, number, payload)))

    def close(self) -> None:
        """Wait until everything is sent."""
        self._messages.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._pipe.send_bytes(message)
            except OSError as error:
                log.warning("the driver is gone (%s): events are no longer sent", error)
                return
