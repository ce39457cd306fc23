"""Bodies that survive: they save what they have done, and go on from it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.launch import Worker
from cluster.stopping import Stopped, StopVote


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
    """Steps, on which the first worker dawdles; each worker leaves the number of the step at which it stops."""
    vote = StopVote(worker)
    for step in range(3000):
        if worker.rank == 0:
            time.sleep(0.02)
        if vote():
            (folder / f"stopped-{worker.rank}").write_text(str(step))
            raise Stopped()
        if step == 5:
            worker.emit({"pid": os.getpid(), "rank": worker.rank})


def pay_no_heed(worker: Worker, folder: Path) -> None:
    worker.emit({"pid": os.getpid(), "rank": worker.rank})
    time.sleep(600)


def stay_away(worker: Worker, folder: Path) -> None:
    """The last worker does not come to a collective."""
    if worker.rank == worker.world_size - 1:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def count(worker: Worker, folder: Path) -> int:
    """How often this item was begun."""
    with (folder / "begun").open("a") as file:
        file.write("x")
    return len((folder / "begun").read_text())


def have_a_child(worker: Worker, folder: Path) -> int:
    """The signal by which a forked child ended that was sent SIGTERM, as a parent does who needs it no more."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    child.start()
    time.sleep(0.2)
    child.terminate()
    child.join()
    return child.exitcode or 0


ACTIONS: tuple[Callable[[Worker, Path], Any], ...] = (
    *(die_once, stay_away, work_until_stopped, pay_no_heed),
    *(count, have_a_child),
)
ACTS = {act.__name__: act for act in ACTIONS}
