"""Runs that end by SIGKILL at a chosen point: what tests of resuming start, in their workers and as a driver."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import checkpoints, strategy
from cluster.launch import Group, Worker, launch
from pipelines.data.config import Digits
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.recipes import Choices

prospr_file = importlib.import_module("compression.criteria.prospr")

METHODS = {
    "dense": Choices("dense", "cross_entropy"),
    "early_pruning, CS-KD": Choices("early_pruning", "cs_kd"),
    "early_pruning, PS-KD": Choices("early_pruning", "ps_kd"),
    "early_pruning, DLB": Choices("early_pruning", "dlb"),
    "EPSD, CS-KD": Choices("epsd", "cs_kd"),
}
EPOCHS, STEPS_PER_EPOCH = 3, 5


def small(name: str) -> Experiment:
    """Three epochs of five steps on the digits."""
    training = Training(epochs=EPOCHS, batch_size=256, optimizer=SGD(lr=0.05), schedule=Cosine())
    return Experiment(METHODS[name].compress(0.9), "resnet20", Digits(), training, seed=3)


def work_in(storage: Path, experiment: Experiment) -> Work:
    return Work(experiment, Placement(checkpoint_steps=2, storage=str(storage)), storage, {"recipe": "test"})


@dataclass(frozen=True)
class Kill:
    """SIGKILL to `victim` ("worker": this process, or "driver") as worker `rank` comes to a point for the nth time.

    The killer then waits `linger` seconds: the kernel ends a local worker with its driver, one of Ray's may live on.

    point: "score" (a loss of the criterion), "train" (an optimiser step) or "checkpoint" (one that is written but has
    not got its name yet).
    """

    point: str
    nth: int
    rank: int
    victim: str
    linger: float = 60


def execute_and_die(item: tuple[Work, Kill | None, int], worker: Worker) -> Any:
    """`execute`, armed with a kill."""
    work, kill, driver = item
    if kill is not None and kill.rank == worker.rank:
        arm(kill, driver)
    return execute(work, worker)


def arm(kill: Kill, driver: int) -> None:
    owner, name = {
        "score": (prospr_file, "total_loss"),
        "train": (strategy.Single, "step"),
        "checkpoint": (checkpoints.CheckpointStore, "_put"),
    }[kill.point]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.nth:
            os.kill(driver if kill.victim == "driver" else os.getpid(), signal.SIGKILL)
            time.sleep(kill.linger)
        return original(*arguments, **named)

    setattr(owner, name, counted)


def main(text: str) -> None:
    """A driver of its own: storage, method, group and kill as JSON."""
    asked = json.loads(text)
    work = work_in(Path(asked["storage"]), small(asked["method"]))
    [outcome] = launch(
        execute_and_die, [(work, Kill(**asked["kill"]), os.getpid())], Group(**asked["group"]), lambda *_: None
    )
    print(outcome.error or "finished")


def command(storage: Path, method: str, group: Group, kill: Kill) -> list[str]:
    """The command line of `main`."""
    asked = {"storage": str(storage), "method": method, "group": asdict(group), "kill": asdict(kill)}
    return [sys.executable, "-m", "tests.kill_bodies", json.dumps(asked)]


if __name__ == "__main__":
    main(sys.argv[1])
