"""What Ray Train adds to a training: the same loop under plain torch.distributed and under Ray, taking turns."""

from __future__ import annotations

import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.timing import interleaved, noise_floor, ratios
from benchmarks.training_steps import Row, enlarged_digits, no_teacher, open_digits
from benchmarks.turns import Team, Turns, cpu_seconds
from cluster.group import Group
from cluster.worker import Worker
from compression.batch import Batch
from compression.methods import Dense
from pipelines.data.config import Digits
from pipelines.data.loader import Loader
from pipelines.data.loading.views import Opened
from pipelines.execute import environment
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession

LAUNCHERS: dict[str, Literal["local", "ray"]] = {"local": "local", "local_again": "local", "ray": "ray"}
"""What is measured -> its launcher. The second local group says how far apart two equal things come out."""

ENDLESS = 10**9
"""Steps of the one epoch: the driver decides when it ends."""

PATIENCE = 300.0
"""Seconds after which a group whose workers do not answer each other ends."""


@dataclass(frozen=True)
class Setting:
    """One measurement: `rounds` turns of `steps` training steps for each group of `workers` processes.

    batch_size: images per step over all workers of a group. size: of the images, in pixels.
    """

    model: str
    size: int
    batch_size: int
    workers: int
    rounds: int
    steps: int
    device: torch.device

    @property
    def experiment(self) -> Experiment:
        """What each group trains. ValueError: there is no such model."""
        return Experiment(Dense(), self.model, Digits(), Training(1, self.batch_size, SGD(lr=0.01)))


@dataclass(frozen=True)
class Task:
    """What the workers of one group are given."""

    setting: Setting
    storage: str


class InTurns(Loader):
    """Batches of the training split without end, of which each turn gives out some: the loop that asks for them waits.

    Ends by `NoMoreTurns`, so that nothing follows that a training does at the end of an epoch.
    """

    def __init__(self, opened: Opened, turns: Turns, steps: int) -> None:
        super().__init__(opened, val_fraction=0, seed=0)
        self._whole = Loader(opened, val_fraction=0, seed=0)
        self._turns, self._steps = turns, steps

    def steps_per_epoch(self, batch_size: int) -> int:
        return ENDLESS

    def batches(self, *args: Any, **options: Any) -> list[Batch]:
        return self._whole.batches(*args, **options)

    def epoch(self, stage: str, epoch: int, *args: Any, **options: Any) -> Iterator[Batch]:
        whole = (self._whole.epoch(stage, number, *args, **options) for number in itertools.count())
        batches = itertools.chain.from_iterable(whole)
        yield next(batches)
        self._turns.first_step_done()
        while self._turns.begin():
            yield from itertools.islice(batches, self._steps)
            self._turns.end()
        raise NoMoreTurns


class NoMoreTurns(Exception):
    """The measurement is over."""


def body(task: Task, worker: Worker) -> None:
    """Train as any experiment does (`pipelines.training.train`), a turn at a time."""
    turns = Turns(task.storage, worker)
    setting = task.setting
    loader = InTurns(enlarged_digits(setting.size, worker.device), turns, setting.steps)
    experiment = setting.experiment
    folder = RunFolder(Path(task.storage), experiment.identity)
    run = ExperimentSession(experiment, Placement(storage=task.storage), worker, loader, folder, no_teacher)
    with suppress(NoMoreTurns):
        experiment.method.run(run)


@dataclass(frozen=True)
class Start:
    """Seconds from the launch of a group to its first worker's first event, and to the end of its first step."""

    startup_seconds: float
    first_step_seconds: float


class Contest:
    """Groups that take turns. starts: of each, alone on the machine but for groups that were waiting by then."""

    def __init__(self, teams: Mapping[str, Team], starts: Mapping[str, Start]) -> None:
        self.starts = starts
        self._teams = teams
        self._seconds = 0.0
        self._waited = dict.fromkeys(teams, 0.0)
        self._used = dict.fromkeys(teams, 0.0)

    def rounds(self, num: int) -> dict[str, list[float]]:
        """Seconds of each group's turn in each of `num` rounds, in the order of `timing.interleaved`."""
        # A clock that stands still between the turns: handing them over is no part of a training.
        return interleaved({name: partial(self._turn, name) for name in self._teams}, num, lambda: self._seconds)

    def background(self) -> dict[str, float]:
        """CPU seconds per second that each group's processes have used while another one had its turn.

        The turns hide this: beside a group that trains alone, Ray's daemons would take it from the training where no
        core is free.
        """
        return {name: used / self._waited[name] for name, used in self._used.items()}

    def _turn(self, name: str) -> None:
        waiting = [other for other in self._teams if other != name]
        before, began = self._cpu_seconds(), time.perf_counter()
        self._seconds += self._teams[name].turn()
        elapsed, after = time.perf_counter() - began, self._cpu_seconds()
        for other in waiting:
            self._waited[other] += elapsed
            self._used[other] += after[other] - before[other]

    def _cpu_seconds(self) -> dict[str, float]:
        used = cpu_seconds(team.pid for team in self._teams.values())
        return {name: used[team.pid] for name, team in self._teams.items()}


@contextmanager
def contest(setting: Setting) -> Iterator[Contest]:
    """The groups of LAUNCHERS, started one after the other, each with its first step behind it; ended afterwards.

    ValueError: what is asked for cannot be. ChildProcessError, here and in a turn: a group has failed.
    """
    check(setting)
    # Without a look at them, the GPUs would be taken where there are some.
    variables = {} if setting.device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as folder, ExitStack() as stack:
        teams, starts = {}, {}
        for name, launcher in LAUNCHERS.items():
            storage = Path(folder) / name
            storage.mkdir()
            group = Group(storage=str(storage), launcher=launcher, workers=setting.workers, timeout=PATIENCE)
            team = Team(name, body, Task(setting, str(storage)), group, variables)
            teams[name] = stack.enter_context(closing(team))
            starts[name] = Start(*team.wait_for_first_step())
        yield Contest(teams, starts)


def check(setting: Setting) -> None:
    """ValueError for what cannot be measured, before anything is started."""
    if address := os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"RAY_ADDRESS is {address}: the groups take turns on this machine, with a Ray that is started for them; "
            "unset RAY_ADDRESS"
        )
    if importlib.util.find_spec("ray") is None:
        raise ValueError("ray is not installed: `make demo` installs it")
    _ = setting.experiment  # refuses a model that is not there
    digits = open_digits(setting.size, torch.device("cpu"))
    digits.epoch("train", 0, setting.batch_size, frozenset(), world_size=setting.workers)
    if setting.batch_size < 2 * setting.workers:
        raise ValueError(
            f"--batch-size {setting.batch_size} leaves less than two images to each of {setting.workers} workers, and "
            f"BatchNorm needs two: use {2 * setting.workers} or more"
        )
    if setting.device.type == "cuda" and setting.workers > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"--workers {setting.workers} needs as many GPUs, this machine has {count}: use --workers {count}"
        )


def measure(setting: Setting) -> list[Row]:
    """A row for each of LAUNCHERS. Errors as in `contest`."""
    with contest(setting) as groups:
        seconds = groups.rounds(setting.rounds)
        return rows(setting, seconds, groups.starts, groups.background())


def rows(
    setting: Setting,
    seconds: Mapping[str, Sequence[float]],
    starts: Mapping[str, Start],
    background: Mapping[str, float],
) -> list[Row]:
    """What `measure` returns, from the seconds of each group's turn in each round.

    seconds_median: of one step, wall time. ratio: the median over rounds of the group's seconds by local's in the same
    round. noise_floor: of the whole measurement, from the two local groups. background_cpu: `Contest.background`.
    """
    local = seconds["local"]
    floor = noise_floor(ratios(seconds["local_again"], local))
    found = environment(setting.device)
    return [
        {
            "benchmark": "ray",
            "launcher": name,
            "model": setting.model,
            "batch_size": setting.batch_size,
            "size": setting.size,
            "device": setting.device.type,
            "workers": setting.workers,
            "steps": setting.steps,
            "rounds": len(own),
            "clock": "wall",
            "seconds_median": statistics.median(own) / setting.steps,
            "images_per_second": setting.batch_size * setting.steps / statistics.median(own),
            "ratio": statistics.median(ratios(own, local)),
            "noise_floor": floor,
            "startup_seconds": starts[name].startup_seconds,
            "first_step_seconds": starts[name].first_step_seconds,
            "background_cpu": background[name],
            "torch": torch.__version__,
            "ray": found["versions"]["ray"],
            "hardware": found["hardware"],
        }
        for name, own in seconds.items()
    ]
