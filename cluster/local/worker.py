"""The worker's side: a process that `cluster.local.pool` starts, connected to the others by torch's process groups."""

import ctypes
import logging
import os
import pickle
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from cluster.process_group import ProcessGroup
from cluster.stopping import stop_on_sigterm
from cluster.worker import Body, Worker, run_items

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names the signal sent to this process when its parent dies."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker process needs to know.

    device_number: of the GPU, counted modulo their number. store: file through which the workers find each other.
    driver: process id. timeout: see `ProcessGroup`.
    """

    rank: int
    world_size: int
    device_number: int
    threads: int
    store: str
    driver: int
    timeout: float


def run_worker(body: Body, spec: WorkerSpec, pipe: Connection) -> None:
    """The main function of a worker process."""
    _die_with_driver(spec.driver)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver ends its workers
    torch.set_num_threads(spec.threads)
    outbox = _Outbox(pipe)
    try:
        device, group = _device(spec.device_number), None
        if spec.world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = dist.FileStore(spec.store, spec.world_size)
            group = ProcessGroup(store, backend, spec.rank, spec.world_size, spec.timeout)
        with stop_on_sigterm() as stop_signal:
            worker = Worker(spec.rank, spec.world_size, device, stop_signal=stop_signal)
            run_items(body, iter(pipe.recv, None), worker, group, outbox.post)
        outbox.close()
        if group:
            group.close()
    except Exception:
        traceback.print_exc()
        outbox.close()
        sys.stderr.flush()
        os._exit(1)  # a normal exit would wait for collectives that never end


def _device(number: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _die_with_driver(driver: int) -> None:
    """Let the kernel kill this process when the driver dies, for whatever reason.

    Only Linux can do that. Elsewhere a worker ends when it asks for its next item and finds the pipe closed.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != driver:  # it died before the call above
        os._exit(1)


class _Outbox:
    """Sends messages to the driver in a thread, so that a slow driver does not delay the training."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._closed = pipe, False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")

    def post(self, kind: str, number: int, payload: Any) -> None:
        """Queue a copy of one message. An outcome is waited for: this process may end after it."""
        sent = self._thread.submit(self._send, pickle.dumps((kind, number, payload)))
        if kind == "outcome":
            sent.result()

    def close(self) -> None:
        """Wait until everything is sent."""
        self._thread.shutdown()

    def _send(self, message: bytes) -> None:
        if self._closed:
            return
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            log.warning("the driver is gone (%s): events are no longer sent", error)
            self._closed = True
