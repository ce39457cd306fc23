"""How long a recipe takes on N GPUs, and what it costs, from what is measured here and now on one.

python benchmarks/plan.py RECIPE [--gpus N [N ...]] [--price P] [OPTIONS] [the recipe's own options]

    python benchmarks/plan.py imagenet_epsd --gpus 8 --data.root DIR --price 2.5
    python benchmarks/plan.py imagenet_dense --gpus 8 16 --gpus-per-host 8 --bandwidth 12 --latency 20 --schedule ffcv16
    python benchmarks/plan.py cifar100_prune_then_distill --gpus 1 2 4 --json >measured.json
    python benchmarks/plan.py cifar100_prune_then_distill --gpus 1 2 4 --measured measured.json --price 1.2

It goes through the recipe's method without training, teachers and controls included, and times on this device what it
finds: a step of each training with the images that one of N GPUs gets, an evaluation, the scoring, a checkpoint, the
loader on the data, and an all-reduce between two processes or GPUs of this machine. The model that makes hours on N
GPUs of it is written out in docs/scaling.md, with what it leaves out. Nothing else is assumed: without --price no cost
is printed, without a bandwidth (measured or given) only a lower bound.

The data need not be there: then the official counts are used, and the loader is taken never to be waited for, which the
answer says. Options of the recipe: python pipelines/run.py RECIPE --help. A GPU is a process where there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.planning import measure
from benchmarks.planning.data import Counts, Found, find
from benchmarks.planning.links import measure_link
from benchmarks.planning.meter import Meter, Setting
from benchmarks.planning.model import Act, Link, Measured, Place, Train
from benchmarks.planning.rehearsal import Theatre
from benchmarks.planning.report import notes, report, show
from compression.choose import choose
from pipelines import cli
from pipelines.data.config import Data
from pipelines.execute import environment
from pipelines.recipes import RECIPES
from pipelines.run import recipes

WIDTH = 120
"""Of the tables where no terminal has one."""

POSITIVE = (
    "gpus_per_host",
    "batch_per_gpu",
    "price",
    "bandwidth",
    "loader_rate",
    "seconds",
    "train_images",
    "test_images",
    "classes",
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when planned, 2 for what the user has to correct."""
    options, of_recipe = _parser().parse_known_args(argv)
    errors = Console(stderr=True)
    try:
        _check(options)
        command = cli.parse(choose("recipe", options.recipe, RECIPES), of_recipe, f"plan.py {options.recipe}")
        plan = make(
            options,
            command,
            lambda text: errors.print(f"measuring {text}", style="dim", highlight=False, markup=False, soft_wrap=True),
        )
    except (ValueError, OSError) as error:
        cli.complain(f"error: {error}")
        return 2
    if options.json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


def make(options: argparse.Namespace, command: cli.Command, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan of a command as one JSON object."""
    if command.placement.strategy == "deepspeed":
        raise ValueError("the model is that of --strategy ddp; what ZeRO's exchange takes is not in it")
    torch.set_num_threads(command.placement.threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    experiments = [command.experiment, *(cli.controls(command.experiment) if command.controls else [])]
    gpus = tuple(sorted({1, *options.gpus}))
    measured, fixed = Measured(_device_name(device)), False
    if options.measured is not None:
        measured, fixed = read(options.measured), True
    precision = command.experiment.training.precision
    dtype = torch.float64 if precision == "float64" else torch.float32
    decoders = _decoders(options, command)
    data: dict[str, Found] = {}

    def found(config: Data) -> Found:
        data[config.label] = find(config, device, dtype, decoders, _counts(options))
        return data[config.label]

    with measure.scratch(command.placement.storage) as folder:
        setting = Setting(
            gpus,
            options.batch_per_gpu,
            options.seconds,
            options.loader_rate is not None,
            device,
            folder,
        )
        meter = Meter(setting, measured, fixed, say)
        theatre = Theatre(meter, found, device)
        for experiment in experiments:
            theatre.rehearse(experiment)
    no_link = _find_link(options, measured, meter.acts, fixed, say) if max(gpus) > 1 else None
    places = [_place(options, measured, number) for number in gpus]
    told = notes(options, measured, meter.acts, data, no_link)
    return {
        "recipe": options.recipe,
        "experiments": [{"name": e.name, "identity": e.identity} for e in experiments],
        "notes": told,
        **report(meter.acts, places, measured, options.price),
        "measured": dataclasses.asdict(measured),
    }


def read(path: Path) -> Measured:
    """What a plan that --json wrote stands on. ValueError: the file is something else."""
    try:
        return Measured.of_json(json.loads(path.read_text())["measured"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no plan that --json wrote ({type(error).__name__}: {error})") from error


def _find_link(
    options: argparse.Namespace, measured: Measured, acts: Sequence[Act], fixed: bool, say: Callable[[str], None]
) -> str | None:
    """Set the link between devices: given, known already, or measured here. Why there is none, where there is not."""
    if options.bandwidth is not None:
        measured.link = Link(options.latency * 1e-6, options.bandwidth * 1e9)
        return None
    if measured.link is not None:
        return None
    if fixed:
        return "the measurements that were given do not hold it: give --bandwidth"
    sizes = [act.gradient_bytes for act in acts if isinstance(act, Train)]
    if not sizes:
        return None
    say("all-reduce between two of this machine")
    try:
        measured.link = measure_link(max(sizes))
    except ValueError as error:
        return str(error)
    return None


def _place(options: argparse.Namespace, measured: Measured, gpus: int) -> Place:
    hosts = 1 if options.gpus_per_host is None else -(-gpus // options.gpus_per_host)
    return Place(gpus, hosts, measured.link, options.loader_rate)


def _decoders(options: argparse.Namespace, command: cli.Command) -> int:
    """Processes or threads that decode on one host: each device's own, but no more than there are cores here."""
    cores = os.cpu_count() or 1
    each = command.placement.loader_workers
    per_host = min(options.gpus_per_host or max(options.gpus), max(options.gpus))
    return min(cores, per_host * (min(8, cores) if each is None else each))


def _counts(options: argparse.Namespace) -> Counts | None:
    given = (options.classes, options.train_images, options.test_images)
    if all(value is None for value in given):
        return None
    if any(value is None for value in given):
        raise ValueError("--train-images, --test-images and --classes go together: give all three, or none")
    return Counts(*given)


def _device_name(device: torch.device) -> str:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{environment(device)['hardware']}{threads}, torch {torch.__version__}"


def _check(options: argparse.Namespace) -> None:
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {value}")
    if min(options.gpus) < 1:
        raise ValueError(f"--gpus must be 1 or more, not {min(options.gpus)}")
    if options.bandwidth is None and options.latency is not None:
        raise ValueError("--latency goes with --bandwidth: give both, or none for the two to be measured here")
    if options.bandwidth is not None and (options.latency is None or options.latency < 0):
        raise ValueError("--bandwidth goes with --latency in microseconds (0 or more): give both")


def _parser() -> argparse.ArgumentParser:
    epilog = f"recipes:\n{recipes()}"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "plan.py", description=__doc__, epilog=epilog, formatter_class=layout, allow_abbrev=False
    )
    parser.add_argument("recipe", metavar="RECIPE", help="by name, as pipelines/run.py has it")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], metavar="N", help="how many; several: a line each")
    parser.add_argument("--gpus-per-host", type=int, metavar="G", help="of one machine, which has one loader's rate")
    parser.add_argument("--price", type=float, metavar="P", help="of one GPU for an hour, in any currency")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the slowest link of the ring, one way")
    parser.add_argument("--latency", type=float, metavar="US", help="of a message between two GPUs, in microseconds")
    parser.add_argument("--loader-rate", type=float, metavar="R", help="images per second that one host reads")
    parser.add_argument("--batch-per-gpu", type=int, metavar="B", help="most images at once in what is measured")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for each measurement, about (10)")
    parser.add_argument("--train-images", type=int, metavar="N", help="where the data are not there: how many, before")
    parser.add_argument("--test-images", type=int, metavar="N", help="validation is held out of train's; how many test")
    parser.add_argument("--classes", type=int, metavar="N", help="and how many classes")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="measure nothing: take what --json wrote there")
    parser.add_argument("--json", action="store_true", help="the plan and all measurements as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
