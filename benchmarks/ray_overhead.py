"""What Ray Train adds to a training: the same loop in local processes and under Ray Train, in turns."""

import os
import queue
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.timing import Row, Setting, interleaved, turn_rows
from benchmarks.training_steps import dense_session, enlarged_digits, train_with_pauses
from cluster.environment import environment as variables
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Worker
from compression.objectives import CrossEntropy
from pipelines.execute import environment

LAUNCHERS: dict[str, Literal["local", "ray"]] = {"local": "local", "local_again": "local", "ray": "ray"}
"""What is measured -> its launcher. The second local group shows how far apart two equal things come out."""


def body(task: tuple[Setting, Path], worker: Worker) -> None:
    """Train. After the first step and after each turn tell the driver how long it took, and wait for the next turn."""
    setting, folder = task
    worker.emit({"kind": "began"})
    turns = (folder / "turns").open("rb", buffering=0) if worker.rank == 0 else None
    began = time.perf_counter()

    def wait_for_others() -> None:
        if worker.device.type == "cuda":
            torch.cuda.synchronize(worker.device)
        if worker.control is not None:
            dist.barrier(group=worker.control)

    def next_turn() -> bool:
        nonlocal began
        wait_for_others()
        word = torch.zeros(1, dtype=torch.int32)
        if turns is not None:
            worker.emit({"kind": "turn", "seconds": time.perf_counter() - began})
            word[0] = len(turns.read(1))  # nothing if the driver has closed the pipe, or has died
        if worker.control is not None:
            dist.broadcast(word, 0, group=worker.control)
        wait_for_others()
        began = time.perf_counter()
        return bool(word)

    images = enlarged_digits(setting.size, worker.device)
    session = dense_session(setting.model, setting.batch_size, images, worker, folder)
    train_with_pauses(session, setting.steps, next_turn, session.model(), CrossEntropy())


class Team:
    """The driver's side of one group, launched by a thread. It has done its first step and waits for a turn.

    startup_seconds, first_step_seconds: from the launch to a worker's first event, and to the end of the first step.
    elapsed: seconds of its turns so far. ChildProcessError, here and in `turn`: the group has failed.
    """

    elapsed = 0.0

    def __init__(self, name: str, setting: Setting, folder: Path) -> None:
        folder.mkdir()
        os.mkfifo(folder / "turns")
        self._turns = os.open(folder / "turns", os.O_RDWR)  # for reading too: that does not wait for the worker
        self._name, self._messages = name, queue.SimpleQueue()
        launched = time.perf_counter()
        self._thread = threading.Thread(target=self._launch, args=(setting, folder), name=name, daemon=True)
        self._thread.start()
        self.startup_seconds = self._wait_for("began")[0] - launched
        self.first_step_seconds = self._wait_for("turn")[0] - launched

    def turn(self) -> None:
        """Let the group train for `steps` steps."""
        os.write(self._turns, b"!")
        self.elapsed += self._wait_for("turn")[1]

    def close(self) -> None:
        """No more turns; wait until the group has ended."""
        os.close(self._turns)
        self._thread.join(timeout=60)

    def _launch(self, setting: Setting, folder: Path) -> None:
        def on_event(number: int, event: dict[str, Any]) -> None:
            self._messages.put((event["kind"], time.perf_counter(), event.get("seconds", 0.0)))

        try:
            group = Group(storage=str(folder), launcher=LAUNCHERS[self._name], workers=setting.workers, timeout=300.0)
            [outcome] = launch(body, [(setting, folder)], group, on_event)
            error = f"{outcome.error}\n{outcome.traceback or ''}"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        self._messages.put(("ended", 0.0, error))

    def _wait_for(self, kind: str) -> tuple[float, float]:
        """(when the next event of this kind came, the seconds in it)."""
        while True:
            found, when, content = self._messages.get()
            if found == kind:
                return when, content
            if found == "ended":
                raise ChildProcessError(f"the group {self._name} ended: {content}".rstrip())


def measure(setting: Setting) -> list[Row]:
    """A row for each of LAUNCHERS. ValueError: there is another Ray; ChildProcessError: a group has failed."""
    if address := os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"RAY_ADDRESS is {address}, but this measures a Ray that it starts here: unset RAY_ADDRESS")
    equal = {"RAY_worker_niceness": "0"}  # Ray's workers are nice by default, and lose on a busy machine
    equal |= {} if setting.device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, variables(equal), ExitStack() as stack:
        teams = {n: stack.enter_context(closing(Team(n, setting, Path(folder) / n))) for n in LAUNCHERS}
        turns = {name: team.turn for name, team in teams.items()}
        seconds = interleaved(turns, setting.rounds, lambda: sum(team.elapsed for team in teams.values()))
        return rows(setting, teams, seconds)


def rows(setting: Setting, teams: Mapping[str, Team], seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """What `measure` returns: `timing.turn_rows` of each group's turns, with the seconds until its first step."""
    version = environment(setting.device)["versions"]["ray"]
    found = turn_rows(setting, "launcher", seconds, benchmark="ray", clock="wall", ray=version)
    for row, team in zip(found, teams.values(), strict=True):
        row |= {"startup_seconds": team.startup_seconds, "first_step_seconds": team.first_step_seconds}
    return found
