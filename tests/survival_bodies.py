"""Bodies for the tests of failures: they save their work and resume from it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.group import Group
from cluster.launch import launch
from cluster.stopping import Stopped, StopRequest, Vote
from cluster.stragglers import StragglerDetector
from cluster.worker import Worker


def survive(item: tuple[str, str], worker: Worker) -> Any:
    """Run the act of this name in a folder."""
    name, folder = item
    return ACTS[name](worker, Path(folder))


def die_once(worker: Worker, folder: Path) -> str:
    """The last worker is killed the first time."""
    if worker.rank == worker.world_size - 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if worker.world_size > 1:
        dist.all_reduce(torch.ones(1))
    return "survived"


def work_until_stopped(worker: Worker, folder: Path) -> None:
    """Steps, in which worker 0 is slow; each worker writes the step at which it stops."""
    vote = Vote(worker.stop_signal, worker.world_size, worker.control)
    for step in range(3000):
        if worker.rank == 0:
            time.sleep(0.02)
        if vote() == StopRequest.STOP:
            (folder / f"stopped-{worker.rank}").write_text(str(step))
            raise Stopped()
        if step == 5:
            worker.emit({"pid": os.getpid(), "rank": worker.rank})


def save_when_asked(worker: Worker, folder: Path) -> None:
    """The last worker is asked for a checkpoint; each leaves the steps at which it would write one."""
    vote, saved = Vote(worker.stop_signal, worker.world_size, worker.control), []
    for step in range(12):
        if step in (3, 7) and worker.rank == worker.world_size - 1:
            worker.stop_signal.request_save()
        if vote() == StopRequest.SAVE:
            saved.append(step)
    (folder / f"saved-{worker.rank}").write_text(str(saved))


def ignore_the_stop(worker: Worker, folder: Path) -> None:
    worker.emit({"pid": os.getpid(), "rank": worker.rank})
    time.sleep(600)


def stay_away(worker: Worker, folder: Path) -> None:
    """The last worker does not come to a collective."""
    if worker.rank == worker.world_size - 1:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def stop_for_good(worker: Worker, folder: Path) -> str:
    """The first worker is stopped by the kernel while the others wait for what it computes; the second time, it is not.

    As where a machine is cut off from the other one alone: no connection is closed."""
    if worker.rank == 0:
        first = not (folder / "stopped").exists()
        (folder / "stopped").touch()
        if first:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(6)  # longer than the others' timeout
    dist.barrier(worker.control)
    return "survived"


def count(worker: Worker, folder: Path) -> int:
    """How often this item was begun."""
    with (folder / "begun").open("a") as file:
        file.write("x")
    return len((folder / "begun").read_text())


def be_slow(worker: Worker, folder: Path) -> Any:
    """The last worker takes ten times as long as the others for its own work, in most steps."""
    pace = StragglerDetector(worker)
    for step in range(9):
        with pace.own_work():
            time.sleep(0.2 if worker.rank == worker.world_size - 1 and step % 4 else 0.02)
        if worker.world_size > 1:
            dist.all_reduce(torch.ones(1))
    return pace.slowest(), pace.slowest()


def speak(worker: Worker, folder: Path) -> None:
    print(f"rank {worker.rank} speaks")


def have_a_child(worker: Worker, folder: Path) -> int:
    """The exit code of a forked child after SIGTERM."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=_sleep, args=(started,))
    child.start()
    started.wait()
    child.terminate()
    child.join()
    return child.exitcode or 0


def _sleep(started: Any) -> None:
    started.set()
    time.sleep(60)


ACTIONS: tuple[Callable[[Worker, Path], Any], ...] = (
    *(die_once, stay_away, work_until_stopped, save_when_asked, ignore_the_stop),
    *(stop_for_good, count, be_slow, speak, have_a_child),
)
ACTS = {act.__name__: act for act in ACTIONS}


if __name__ == "__main__":  # as a job: two workers on Ray speak
    logging.basicConfig(level=logging.INFO)
    group = Group(storage=sys.argv[1], launcher="ray", workers=2)
    [outcome] = launch(survive, [("speak", sys.argv[1])], group, lambda number, event: None)
    sys.exit(outcome.error)
