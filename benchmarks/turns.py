"""Worker groups that take turns: all are alive at the same time, and while one works the others wait for theirs.

Each group is launched from a process of its own, as `cluster.launch.launch` returns when its workers have ended. A turn
is handed to the group's first worker through a Unix socket in the group's storage, so all run on this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from cluster.environment import environment
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Body, Outcome, Worker

BEGAN, FIRST_STEP, ENDED = "began", "first_step", "ended"

FAREWELL_SECONDS = 30.0
"""How long a group may take to leave before its processes are killed."""

_SECONDS = struct.Struct("d")


def _address(storage: str) -> str:
    return str(Path(storage) / "turns")


class Turns:
    """A worker's side: `begin` waits for the turn of its group, `end` says how long it took.

    Collective: each worker of the group calls each method, in the same order. The seconds are those of rank 0, between
    two points at which all workers have met; on a GPU with everything done that was started.
    """

    def __init__(self, storage: str, worker: Worker) -> None:
        self._worker = worker
        self._began = 0.0
        self._driver = socket.socket(socket.AF_UNIX) if worker.rank == 0 else None
        if self._driver:
            self._driver.connect(_address(storage))
        worker.emit({"kind": BEGAN})

    def first_step_done(self) -> None:
        """To be called once, after the first step and before the first turn."""
        self._meet()
        if self._worker.rank == 0:
            self._worker.emit({"kind": FIRST_STEP})

    def begin(self) -> bool:
        """True when it is this group's turn; False when there are no more, or the driver has gone."""
        word = torch.zeros(1, dtype=torch.int32)
        if self._driver:
            word[0] = len(self._driver.recv(1))
        if self._worker.control is not None:
            dist.broadcast(word, 0, group=self._worker.control)
        if not word.item():
            return False
        self._meet()
        self._began = time.perf_counter()
        return True

    def end(self) -> None:
        self._meet()
        if self._driver:
            with suppress(ConnectionError):  # the driver has gone: `begin` will say so to all workers
                self._driver.sendall(_SECONDS.pack(time.perf_counter() - self._began))

    def _meet(self) -> None:
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize(self._worker.device)
        if self._worker.control is not None:
            dist.barrier(group=self._worker.control)


class Team:
    """The driver's side of one group: `body(item, worker)` launched as `group` says, in a process of its own.

    The body takes its turns by `Turns(group.storage, worker)`. variables: of the environment in which it is launched.
    Each method raises ChildProcessError, with what the group said, where the group ends too early.
    """

    def __init__(self, name: str, body: Body, item: Any, group: Group, variables: Mapping[str, str]) -> None:
        self.name = name
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(_address(group.storage))
        self._server.listen()
        self._channel: socket.socket | None = None
        context = get_context("spawn")
        self._messages, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_launch, args=(body, item, group, theirs), name=name)
        with environment(variables):
            self._process.start()
        theirs.close()  # so that the messages end with the process

    @property
    def pid(self) -> int:
        """Of the process below which all others of the group are."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_for_first_step(self) -> tuple[float, float]:
        """Seconds from the call of launch to the first event of any worker, and to the end of the first step."""
        seconds = self._wait_for(BEGAN), self._wait_for(FIRST_STEP)
        self._channel = self._server.accept()[0]
        return seconds

    def turn(self) -> float:
        """Give the group its turn and wait for its end; the seconds that it took."""
        assert self._channel is not None, "it has no first step behind it"
        answer = b""
        with suppress(ConnectionError):  # the group says by itself why it is gone
            self._channel.sendall(b"!")
            if self._channel in connection.wait([self._channel, self._messages]):
                answer = self._channel.recv(_SECONDS.size, socket.MSG_WAITALL)
        return _SECONDS.unpack(answer)[0] if answer else self._wait_for(ENDED)

    def close(self) -> None:
        """No more turns: wait until the group has left, or kill it."""
        self._server.close()
        if self._channel is None:
            self._process.terminate()  # it does not wait for a turn yet; launch ends its workers
        else:
            self._channel.close()
        self._process.join(FAREWELL_SECONDS)
        self._process.kill()
        self._process.join()

    def _wait_for(self, awaited: str) -> float:
        try:
            kind, content = self._messages.recv()
        except EOFError:
            self._process.join()
            raise ChildProcessError(f"the group {self.name} died (exit code {self._process.exitcode})") from None
        if kind == ENDED:
            self._complain(content)
        assert kind == awaited
        return content

    def _complain(self, outcome: Outcome) -> NoReturn:
        reason = outcome.error or "its body returned"
        raise ChildProcessError("\n".join(filter(None, [f"the group {self.name} ended: {reason}", outcome.traceback])))


def _launch(body: Body, item: Any, group: Group, messages: Connection) -> None:
    """The main function of a group's process. Messages: (BEGAN, seconds), (FIRST_STEP, seconds), (ENDED, outcome)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver ends its groups
    threading.Thread(target=_end_with_driver, name="end with driver", daemon=True).start()
    awaited = [BEGAN, FIRST_STEP]
    begin = time.perf_counter()

    def on_event(number: int, event: dict[str, Any]) -> None:
        if awaited and event.get("kind") == awaited[0]:
            messages.send((awaited.pop(0), time.perf_counter() - begin))

    try:
        [outcome] = launch(body, [item], group, on_event)
    except Exception as error:
        outcome = Outcome(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    with suppress(BrokenPipeError):  # the driver has gone
        messages.send((ENDED, outcome))


def _end_with_driver() -> None:
    """Without a driver no turn comes, and the group leaves by itself; if it does not, it dies with this process."""
    driver = parent_process()
    assert driver is not None
    driver.join()
    time.sleep(FAREWELL_SECONDS)
    os._exit(1)


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds that each process and those below it have used so far, on Linux also those that have ended."""
    import psutil

    found = dict.fromkeys(pids, 0.0)
    for pid in found:
        with suppress(psutil.NoSuchProcess):  # its group has failed, as will be seen in its turn
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    times = process.cpu_times()
                    found[pid] += times.user + times.system + times.children_user + times.children_system
    return found
