"""Runs that end by SIGKILL at a chosen point: what tests of resuming start, in their workers and as a driver."""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cluster import checkpoints, strategy
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Worker
from compression import cost
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.run_folder import RunFolder

SEED = int(os.environ.get("ORCHARD_KILL_SEED", random.randrange(10**6)))
"""Of the draws; set the variable to draw the same again."""

POINTS = {
    "stage": (cost, "count_flops"),
    "train": (strategy.Single, "step"),
    "checkpoint": (checkpoints, "publish_folder"),
}
"""Where a run can be killed: as a stage has its result (or a step's cost is counted) and nothing is stored yet, before
an optimiser's step, and before a written checkpoint is published."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to `victim` ("worker": this process, or "driver") as worker `rank` comes to a point for the nth time.

    The killer then waits `linger` seconds: the kernel ends a local worker with its driver, one of Ray's may live on.
    """

    point: str
    nth: int
    rank: int = 0
    victim: str = "worker"
    driver: int = 0
    """its process"""
    linger: float = 60


def work_in(storage: Path, experiment: Experiment, keep: int = 2) -> Work:
    """`experiment`, with a checkpoint after every other step."""
    placement = Placement(checkpoint_steps=2, keep=keep, storage=str(storage))
    return Work(experiment, placement, storage, {"recipe": "test"})


def execute_and_die(item: tuple[Work, Kill | None], worker: Worker) -> dict[str, int]:
    """`execute`, armed with a kill; how often this worker came to each point, its teachers' trainings included."""
    work, kill = item
    # One latency of three: these tests run many networks.
    with armed(kill, worker.rank) as counts, mock.patch("pipelines.costs.LATENCY_BATCHES", (1,)):
        execute(work, worker)
    return counts


def die_in_a_fork(item: tuple[Work, Kill], worker: Worker) -> None:
    """`execute_and_die` in a fork of this worker, which has imported what a run needs: a new process takes seconds.

    ChildProcessError with the name of the signal that ended it. A process that uses a GPU cannot be forked: it dies.
    """
    if worker.device.type != "cpu":
        execute_and_die(item, worker)
    import torch._dynamo  # the first training of a process does so

    assert torch._dynamo
    child = os.fork()
    if child == 0:
        try:
            execute_and_die(item, replace(worker, emit=lambda event: None))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run has ended before its kill"
    raise ChildProcessError(signal.Signals(os.WTERMSIG(status)).name)


@contextmanager
def armed(kill: Kill | None, rank: int) -> Iterator[dict[str, int]]:
    """Counts how often this process comes to each point, and kills if it is to."""
    counts = dict.fromkeys(POINTS, 0)

    def counted(point: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            counts[point] += 1
            result = original(*arguments, **named) if point == "stage" else None
            if kill is not None and (kill.point, kill.nth, kill.rank) == (point, counts[point], rank):
                os.kill(kill.driver if kill.victim == "driver" else os.getpid(), signal.SIGKILL)
                time.sleep(kill.linger)
            return result if point == "stage" else original(*arguments, **named)

        return call

    with ExitStack() as patches:
        for point, (owner, name) in POINTS.items():
            patches.enter_context(mock.patch.object(owner, name, counted(point, getattr(owner, name))))
        yield counts


def draw_kill(draw: random.Random, counts: dict[str, int], rank: int = 0, victim: str = "worker") -> Kill:
    """Anywhere in a run that comes so often to each point; only the first worker comes to all of them."""
    point = draw.choice([point for point, count in counts.items() if count and (rank == 0 or point == "train")])
    return Kill(point, draw.randint(1, counts[point]), rank, victim)


def main(path: str) -> None:
    """A driver of its own, by what `command` has written."""
    work, kill, group = pickle.loads(Path(path).read_bytes())
    [outcome] = launch(execute_and_die, [(work, replace(kill, driver=os.getpid()))], group, lambda *_: None)
    print(outcome.error or "finished")


def command(work: Work, kill: Kill, group: Group) -> list[str]:
    """The command line of `main`."""
    asked = work.storage / "asked.pickle"
    asked.write_bytes(pickle.dumps((work, kill, group)))
    return [sys.executable, "-m", "tests.kill_bodies", str(asked)]


def same_run(run: RunFolder, expected: RunFolder) -> None:
    """Equal artefacts, byte for byte, and each number in both histories, once and equal; but for what was measured."""

    def numbers(folder: RunFolder) -> dict[tuple[str, int], float]:
        history = [r for r in folder.read_history() if not any(part in r["key"] for part in MEASURED)]
        found = {(r["key"], r["step"]): r["value"] for r in history}
        assert len(found) == len(history)
        return found

    for name in ("model.safetensors", "arch.json"):
        assert (run.path / name).read_bytes() == (expected.path / name).read_bytes()
    assert numbers(run) == numbers(expected)


MEASURED = ("seconds", "per_second", "bytes", "data_wait", "slowest_worker")
"""In the keys of numbers that are another in every run."""


if __name__ == "__main__":
    main(sys.argv[1])
