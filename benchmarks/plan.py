"""How long a recipe takes on N GPUs, and what it costs, from a few steps timed on this device.

    python benchmarks/plan.py imagenet_epsd --gpus 8 --data.root DIR --price 2.5
    python benchmarks/plan.py imagenet_dense --gpus 8 16 --gpus-per-host 8 --bandwidth 12 --latency 20 --schedule ffcv16

The method runs in a session that trains nothing (DryRun), but times each training, scoring and evaluation once, with
teachers and controls. docs/scaling.md turns these times into hours. Missing data are replaced by random pixels of the
official counts, GPUs by CPU processes. Other options are the recipe's own: python pipelines/run.py RECIPE --help.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.timing import Row, all_reduce_seconds, machine, mean_seconds, ring_seconds, wall_clock
from benchmarks.training_steps import even, even_result, random_pixels, seconds_per_step
from cluster.worker import Worker
from compression import gates
from compression.batch import Batch
from compression.choose import choose
from compression.cost import count_flops, latency
from compression.masks import Masks
from compression.objectives import Objective
from pipelines import cli
from pipelines.context import EpochRange
from pipelines.data.config import CIFAR10, CIFAR100, CUB, Digits, ImageNet, TinyImageNet
from pipelines.data.loader import Loader, open_loader
from pipelines.evaluation import autocast
from pipelines.experiment import Experiment, Placement, Training
from pipelines.progress import refusing, say
from pipelines.recipes import RECIPES
from pipelines.run import recipes
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession, Groups
from pipelines.teachers import with_data_of

OFFICIAL = {
    CIFAR10: (10, 50_000, 10_000),
    CIFAR100: (100, 50_000, 10_000),
    TinyImageNet: (200, 100_000, 10_000),
    ImageNet: (1000, 1_281_167, 50_000),
    CUB: (200, 5_994, 5_794),
}
"""Data set -> classes, images in train (before validation is held out), images in test."""


@dataclass
class Plan:
    """Times what runs consist of. parts: a row for each training, stage and evaluation; notes: the assumptions."""

    options: argparse.Namespace
    device: torch.device
    loader_workers: int
    parts: list[Row] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    _networks: dict[str, nn.Module] = field(default_factory=dict)
    _measured: dict[Any, float] = field(default_factory=dict)

    def run(self, experiment: Experiment) -> nn.Module:
        """Go through a run, if that was not done before; the network that it would leave, untrained."""
        if experiment.identity not in self._networks:
            session = DryRun(experiment, self)
            self._networks[experiment.identity] = model = experiment.method.run(session)
            session.evaluate(model, "test")
        return self._networks[experiment.identity]

    def once(self, what: str, key: Any, measure: Callable[[], float]) -> float:
        """The result of `measure`, which runs once for each key."""
        if (what, key) not in self._measured:
            print(f"timing {what}", file=sys.stderr)
            self._measured[what, key] = measure()
        return self._measured[what, key]

    def all_reduce(self, num_bytes: int, gpus: int) -> float:
        """Seconds on so many devices, by the options or as timed between two of this machine."""
        bandwidth = self.options.bandwidth * 1e9
        if gpus > 1 and not bandwidth:
            if torch.cuda.device_count() == 1:
                self.notes["hours are without communication, as this machine has one GPU: give --bandwidth"] = None
                return 0.0
            what = f"an all-reduce of {num_bytes:,} bytes"
            bandwidth = num_bytes / self.once(what, None, lambda: all_reduce_seconds(num_bytes))
        return ring_seconds(num_bytes, gpus, bandwidth or math.inf, self.options.latency * 1e-6)


class DryRun(ExperimentSession):
    """The session of one run: it trains nothing, but times each training, stage and evaluation for a plan.

    Weights, scores and gates are random values with one distribution, so that every layer loses the same share.
    """

    def __init__(self, experiment: Experiment, plan: Plan) -> None:
        loader, note = open_data(experiment, plan.device, plan.loader_workers, plan.options.counts)
        worker, folder = Worker(0, 1, plan.device, None, lambda event: None), RunFolder(Path("unused"), "plan")
        of_run = experiment, Placement(), worker, loader, folder
        super().__init__(*of_run, lambda _, asked: plan.run(with_data_of(experiment, asked)))
        self.plan, self.random_pixels = plan, note is not None
        plan.notes |= {note: None} if note else {}
        self._images = 0, 0  # in the batches for the next stage: that it asked for, and that it is timed on

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        model = super().model(spec)
        for weight in (p for p in model.parameters() if p.dim() > 1):
            weight.data.copy_(torch.where(weight.data < 0, -0.01, 0.01) * even(weight))
        return model

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        asked = size or self.experiment.training.batch_size
        self.loader.steps_per_epoch(asked)  # an error if there are fewer images
        self._images = asked, max(asked // max(self.plan.options.gpus), min(asked, 2))
        return super().batches(objective, num, self._images[1])

    def stage(self, name: str, fn: Callable[[], Any]) -> Any:
        (asked, given), self._images = self._images, (0, 0)
        now = wall_clock(self.device)
        start = now()
        result, _ = count_flops(fn)  # as in a run
        seconds = (now() - start) * (asked / given if given else 1)
        if given < asked:
            self.plan.notes[f"{name}: timed on {given} of {asked} images; the time of all is in proportion"] = None
        self._add(name, lambda gpus: seconds)
        return even_result(result) if given else result

    def train_stage(
        self, stage: EpochRange, model: nn.Module, objective: Objective, masks: Masks | None, groups: Groups | None
    ) -> nn.Module:
        settings, batch_size = stage.settings, stage.settings.batch_size
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        sizes = [self.loader.size_at(epoch / settings.epochs) for epoch in stage.epochs]
        last = dict(zip(sizes, stage.epochs, strict=True))

        def step(gpus: int, size: int | None) -> float:
            share = batch_size // gpus
            self.loader.epoch(stage.stage, 0, batch_size, objective.needs, 0, gpus)  # an error if there is a rest
            still = replace(settings, batch_size=share, optimizer=replace(settings.optimizer, lr=1e-6))
            how = {"settings": still, "epoch": last[size]}
            compute = self.plan.once(
                f"a step on {share} images of {size or self.info.input_shape[1]} px",
                (model, objective, masks is None, still),
                lambda: seconds_per_step(self, self.plan.options.seconds, model, objective, masks, groups, **how),
            )
            reading = self._reading(batch_size, gpus, objective.needs, last[size] / settings.epochs)
            return max(compute + self.plan.all_reduce(num_bytes, gpus), reading)

        def seconds(gpus: int) -> float:
            training = sum(step(gpus, size) * stage.steps_per_epoch for size in sizes)
            return training + len(sizes) * self._evaluation(model, "val", settings, gpus)

        if epochs := len(sizes):
            counts = {"epochs": epochs, "steps": epochs * stage.steps_per_epoch, "gradient_bytes": num_bytes}
            self._add(stage.stage, seconds, **counts)
        (masks or Masks({})).attach(model).close()  # after a training pruned weights are zero
        for gate in gates.gate_parameters(model):
            gate.data = even(gate)
        return model

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        self._add(split, lambda gpus: self._evaluation(model, split, self.experiment.training, gpus))
        return {}

    def _evaluation(self, model: nn.Module, split: str, settings: Training, gpus: int) -> float:
        share, num = max(settings.batch_size // gpus, 1), self.info.sizes[split]
        with autocast(settings, self.device):
            of = model, self.info.input_shape, (share,), self.plan.options.seconds / 4
            forward = self.plan.once(f"an evaluation of {share} images", model, lambda: latency(*of)[share])
        return max(forward * num / share / gpus, self._reading(num, gpus, frozenset(), 1.0))

    def _reading(self, images: int, gpus: int, needs: frozenset[str], progress: float) -> float:
        """Seconds in which the hosts read and decode so many images. Reading from memory is part of a step."""
        options, data, num = self.plan.options, self.experiment.data, min(64, self.info.sizes["train"] // 2)
        if isinstance(data, Digits) or data.backend == "memory" or (self.random_pixels and not options.loader_rate):
            return 0.0
        per_host = images / math.ceil(gpus / (options.gpus_per_host or gpus))
        if options.loader_rate:
            return per_host * (1 + len(needs - {"index"})) / options.loader_rate
        batches = self.loader.epoch("timed", 0, num, needs, progress=progress)
        what, key = f"the loader of {data.label}", (needs, self.loader.size_at(progress))
        return per_host * self.plan.once(what, key, lambda: mean_seconds(batches, options.seconds)) / num

    def _add(self, stage: str, seconds: Callable[[int], float], **more: Any) -> None:
        on = {str(gpus): seconds(gpus) for gpus in self.plan.options.gpus}
        self.plan.parts.append({"run": self.experiment.name, "stage": stage, **more, "seconds": on})


def open_data(
    experiment: Experiment, device: torch.device, workers: int, counts: tuple[int, int, int] | None
) -> tuple[Loader, str | None]:
    """The data and None; or random pixels in classes of equal size, and a note that says so.

    workers: decoding processes or threads. counts: do not look for the data, but take so many images.
    ValueError: the data are missing, and nobody knows how many they are.
    """
    data, dtype = experiment.data, experiment.training.dtype
    if counts is None or isinstance(data, Digits):
        try:
            return open_loader(data, experiment.seed, device, dtype, workers), None
        except FileNotFoundError as error:
            if data.label != type(data)().label or (counts := OFFICIAL.get(type(data))) is None:  # a part of it
                text = f"the size of {data.label} is not known: give --train-images, --test-images and --classes"
                raise ValueError(f"{text}, or the data ({error})") from error
    size = getattr(data, "image_size", 64 if isinstance(data, TinyImageNet) else 32)
    opened = random_pixels(size, counts, device, dtype)
    loader = Loader(opened, data.val_fraction, experiment.seed, getattr(data, "resolution", None))
    return loader, f"{data.label}: random pixels, {counts[1]:,} + {counts[2]:,} images; reading is not timed"


def make(options: argparse.Namespace, command: cli.Command) -> Row:
    """The plan of a command as one JSON object."""
    if command.placement.strategy == "deepspeed":
        raise ValueError("--strategy deepspeed cannot be planned, as ZeRO communicates in another way: plan for ddp")
    torch.set_num_threads(command.placement.threads)
    device, workers = torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), command.placement.loader_workers
    plan = Plan(options, device, min(8 * max(options.gpus), os.cpu_count() or 1) if workers is None else workers)
    experiments = command.experiments()
    for experiment in experiments:
        plan.run(experiment)
    hours = {gpus: sum(part["seconds"][str(gpus)] for part in plan.parts) / 3600 for gpus in options.gpus}
    least = options.gpus[0] * hours[options.gpus[0]]
    plans = [{"gpus": gpus, "hours": hours[gpus], "efficiency": least / gpus / hours[gpus]} for gpus in hours]
    for row in plans if options.price else []:
        row["cost"] = row["hours"] * row["gpus"] * options.price
    names = [{"name": e.name, "identity": e.identity} for e in experiments]
    found = {"recipe": options.recipe, "experiments": names, "plans": plans, "parts": plan.parts}
    return found | {"notes": [*plan.notes]} | machine(device)


def show(plan: Row, console: Console) -> None:
    """A table of what the runs consist of, and the totals."""
    gpus = [str(row["gpus"]) for row in plan["plans"]]
    table = Table("run", "stage", "epochs", "steps", *(f"{n} GPUs" for n in gpus), title=plan["recipe"])
    for part in plan["parts"]:
        counts, seconds = [str(part.get(key, "")) for key in ("epochs", "steps")], part["seconds"]
        table.add_row(part["run"], part["stage"], *counts, *(str(timedelta(seconds=round(seconds[n]))) for n in gpus))
    table.add_section()
    for key, form in {"hours": ".3g", "efficiency": ".0%", "cost": ",.2f"}.items():
        if key in plan["plans"][0]:
            table.add_row("all", key, "", "", *(format(row[key], form) for row in plan["plans"]))
    console.print(table)
    for note in [f"timed on {plan['hardware']}, torch {plan['torch']}", *plan["notes"]]:
        say(console, f"- {note}")


@refusing(ValueError, OSError, torch.OutOfMemoryError)
def main(argv: Sequence[str] | None = None) -> int:
    """0 when planned, 2 for an error that the user has to correct."""
    options, of_recipe = _parser().parse_known_args(argv)
    counts = options.classes, options.train_images, options.test_images
    options.counts, options.gpus = None if None in counts else counts, sorted(set(options.gpus))
    if options.counts is None and any(counts):
        raise ValueError("--classes, --train-images and --test-images go together: give all three, or none")
    recipe = choose("recipe", options.recipe, RECIPES)
    plan = make(options, cli.parse(recipe, of_recipe, f"plan.py {options.recipe}"))
    if options.json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan, Console())
    return 0


def _parser() -> argparse.ArgumentParser:
    def positive(text: str) -> float:
        if not float(text) > 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return float(text) if "." in text else int(text)

    how = {"epilog": recipes(), "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("plan.py", description=__doc__, **how)
    parser.add_argument("recipe", metavar="RECIPE", help="by name")
    parser.add_argument("--gpus", type=positive, nargs="+", default=[1], metavar="N", help="several: a column each")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    for name, default, what in (
        ("--price", None, "of one GPU for an hour, in any currency"),
        ("--seconds", 5.0, "for each measurement, about (5)"),
        ("--gpus-per-host", None, "each host reads its share of the data; without it all GPUs are in one host"),
        ("--bandwidth", 0.0, "of the slowest link between GPUs, in GB/s one way; without it, it is measured here"),
        ("--latency", 0.0, "of a message between two GPUs, in microseconds; goes with --bandwidth"),
        ("--loader-rate", None, "images per second that a host reads and decodes; without it, it is measured here"),
        ("--train-images", None, "if the data are missing: images, before validation is held out"),
        ("--test-images", None, "and test images"),
        ("--classes", None, "and classes"),
    ):
        parser.add_argument(name, type=positive, default=default, metavar="N", help=what)
    return parser


if __name__ == "__main__":
    sys.exit(main())
