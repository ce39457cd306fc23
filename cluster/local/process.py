"""The worker's side: a process that `cluster.local.pool` starts, linked to its peers by torch's process groups."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from cluster.process_group import ProcessGroup
from cluster.stopping import sigterm_notice
from cluster.worker import Body, Place, work_through

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names the signal sent to this process when its parent dies."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker process is told of its place."""

    rank: int
    world_size: int
    device_number: int
    threads: int
    meeting_point: str
    parent: int
    patience: float


def serve(body: Body, seat: WorkerSpec, pipe: Connection) -> None:
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
            links = ProcessGroup(store, backend, seat.rank, seat.world_size, seat.patience)
        place = Place(seat.rank, seat.world_size, device, links)
        with sigterm_notice() as stop_signal:
            work_through(body, iter(pipe.recv, None), place, outbox.post, stop_signal)
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
        self._messages: queue.Queue[bytes | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def post(self, kind: str, number: int, payload: Any) -> None:
        """Queue one message, as it is now: what the caller changes later is not sent. Outcomes are waited for."""
        self._messages.put(pickle.dumps((kind, number, payload)))
        if kind == "outcome":  # this process may end with it
            self._messages.join()

    def close(self) -> None:
        """Wait until everything is sent."""
        self._messages.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        gone = False
        while (message := self._messages.get()) is not None:
            try:
                if not gone:
                    self._pipe.send_bytes(message)
            except OSError as error:
                log.warning("the driver is gone (%s): events are no longer sent", error)
                gone = True
            self._messages.task_done()
