"""What training costs in time, measured side by side.

python benchmarks/throughput.py step [--json] [--model NAME] [--size PIXELS] [--batch-size N] [--repetitions R] ...
python benchmarks/throughput.py loaders [--json] [--imagenet DIR] [--tiny DIR] [--workers N] ...
python benchmarks/throughput.py ray [--json] [--workers N] [--rounds R] [--steps S] [--model NAME] ...

step: one training step (forward, objective, backward, optimiser step) under each objective and under masks, beside that
of a dense network under plain cross-entropy. The images are real and lie on the device; reading them is not part of it.

loaders: images per second from each backend (memory, ffcv, folder), from torchvision's ImageFolder and DataLoader on
the same files, and from a mock that gives the same batch again and again; and what a training makes of them: its images
per second, and the share of its time in which it waits for data. Epochs of all loaders take turns. DIR holds
train/<class>/* (or val/<class>/*); without one it is scikit-learn's digits.

ray: what Ray Train adds to a training. Three groups of N processes train the same, each in DistributedDataParallel, by
the loop of every experiment: two started as plain torch.distributed, which say how far apart equal things come out, and
one by Ray Train. They take turns of S steps, while the other two wait without using the CPU; ratio is to the first
local group in the same round, and is to be at most 1.03 plus the noise floor. Apart from that: the seconds from the
launch of each group to its first worker's first event and to the end of its first step, and in background_cpu what the
turns hide, the CPU seconds per second that a group's processes (Ray's daemons among them) use while others have their
turn. All of it runs on this machine, with a Ray started for it: where RAY_ADDRESS names a cluster, it is refused. On
GPUs each process of a group has one of its own, and the three groups share them: they must hold three trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.training_steps import Row, Setting, measure
from pipelines.experiment import Training
from pipelines.optimizers import SGD

LEAST = {"size": 8, "batch_size": 2, "repetitions": 1, "threads": 1}
"""Of the options: the digits have 8 pixels, and BatchNorm takes two images where one pixel is left."""

LEAST_OF_LOADERS = {"batch_size": 2, "rounds": 1, "steps": 1, "workers": 0, "threads": 1}

LEAST_OF_RAY = {"size": 8, "batch_size": 2, "rounds": 5, "steps": 1, "workers": 1}
"""Fewer rounds have no median to speak of."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured, 2 for what the user has to correct."""
    options = _parser().parse_args(arguments)
    run, draw = {"step": (_steps, show), "loaders": (_loaders, show_loaders), "ray": (_ray, show_ray)}[
        options.benchmark
    ]
    try:
        measured = run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print("\n".join(json.dumps(row) for row in measured))
    else:
        draw(measured, Console())
    return 0


def _steps(options: argparse.Namespace) -> list[Row]:
    setting = _setting(options)
    torch.set_num_threads(options.threads)
    return measure(setting)


def _loaders(options: argparse.Namespace) -> list[Row]:
    from benchmarks import loaders  # torchvision's import takes seconds

    _check_least(options, LEAST_OF_LOADERS)
    torch.set_num_threads(options.threads)
    setting = loaders.Setting(options.batch_size, options.workers, options.rounds, options.steps, _device(options))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        asked = [(loaders.imagenet, options.imagenet), (loaders.tiny, options.tiny)]
        subjects = [make(root) for make, root in asked if root] or [loaders.digits(scratch)]
        return [row for subject in subjects for row in loaders.measure(subject, setting, scratch / subject.name)]


def _ray(options: argparse.Namespace) -> list[Row]:
    from benchmarks import ray_overhead  # the other two do without the pipelines behind it

    _check_least(options, LEAST_OF_RAY)
    chosen = {name: getattr(options, name) for name in ("model", "size", "batch_size", "workers", "rounds", "steps")}
    return ray_overhead.measure(ray_overhead.Setting(**chosen, device=_device(options)))


def show_ray(measured: Sequence[Row], console: Console) -> None:
    """A table for readers."""
    title = (
        "The same training by each launcher: {model}, batch {batch_size}, {size} pixels, {device}, {workers} workers"
    )
    caption = (
        "Medians of {rounds} turns of {steps} steps by {clock} time; noise floor {noise_floor:.3f}; {hardware}, "
        "torch {torch}, ray {ray}. start, 1st step: seconds from the launch. CPU: seconds per second in others' turns"
    )
    table = Table("launcher", title=title.format(**measured[0]), caption=caption.format(**measured[0]))
    for heading in ("ms a step", "images/s", "ratio", "start", "1st step", "CPU"):
        table.add_column(heading, justify="right")
    for row in measured:
        table.add_row(
            row["launcher"],
            f"{1000 * row['seconds_median']:.1f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['ratio']:.3f}",
            f"{row['startup_seconds']:.1f}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['background_cpu']:.3f}",
        )
    console.print(table)


def show_loaders(measured: Sequence[Row], console: Console) -> None:
    """A table for readers."""
    caption = (
        "Medians of {rounds} rounds, batch {batch_size}; a training's noise floor {noise_floor:.3f}; {device}, "
        "threads: {threads}; {hardware}, torch {torch}"
    )
    table = Table("data", "loader", title="Loaders, {workers} workers".format(**measured[0]))
    table.caption = caption.format(**measured[0])
    for heading in ("images/s", "torchvision's", "training, images/s", "of mock's", "waits for data"):
        table.add_column(heading, justify="right")
    for row in measured:
        table.add_row(
            row["data"],
            row["loader"],
            f"{row['images_per_second']:,.0f}",
            f"{row['ratio_to_torchvision']:.2f}",
            f"{row['training_images_per_second']:,.1f}",
            f"{row['training_ratio_to_mock']:.3f}",
            f"{row['data_wait']:.1%}",
        )
    console.print(table)


def show(measured: Sequence[Row], console: Console) -> None:
    """A table for readers."""
    title = "One training step: {model}, batch {batch_size}, {size} pixels, {precision}, {device}, threads: {threads}"
    caption = (
        "Medians of {repetitions} rounds by {clock} time; noise floor {noise_floor:.3f}; {hardware}, torch {torch}"
    )
    table = Table("variant", title=title.format(**measured[0]), caption=caption.format(**measured[0]))
    for heading in ("ms a step", "images/s", "dense steps"):
        table.add_column(heading, justify="right")
    for row in measured:
        numbers = f"{1000 * row['seconds_median']:.1f}", f"{row['images_per_second']:.1f}", f"{row['ratio']:.3f}"
        table.add_row(row["variant"], *numbers)
    console.print(table)


def _check_least(options: argparse.Namespace, bounds: dict[str, int]) -> None:
    for name, least in bounds.items():
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")


def _device(options: argparse.Namespace) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    return torch.device(("cuda" if has_cuda else "cpu") if options.device == "auto" else options.device)


def _setting(options: argparse.Namespace) -> Setting:
    _check_least(options, LEAST)
    device = _device(options)
    training = Training(
        batch_size=options.batch_size,
        optimizer=SGD(lr=0.01),
        precision=options.precision,
        channels_last=options.channels_last,
    )
    return Setting(options.model, options.size, training, options.repetitions, device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    what = "the cost of a training step under each objective and under masks"
    step = benchmarks.add_parser("step", help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    step.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    step.add_argument("--model", default="resnet18_small", help="architecture by name")
    step.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    step.add_argument("--batch-size", type=int, default=32, help="images per step")
    step.add_argument("--repetitions", type=int, default=12, help="timed rounds over all variants")
    step.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    step.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    step.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory layout of convolutions"
    )
    step.add_argument("--threads", type=int, default=1, help="CPU threads")
    _add_loaders(benchmarks)
    _add_ray(benchmarks)
    return parser


def _add_loaders(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "images per second from each backend, and what a training waits for"
    loaders = benchmarks.add_parser("loaders", help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    loaders.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    loaders.add_argument("--imagenet", type=Path, metavar="DIR", help="photographs, for 224-pixel crops")
    loaders.add_argument("--tiny", type=Path, metavar="DIR", help="Tiny-ImageNet's images of 64 pixels")
    cores = min(os.cpu_count() or 1, 8)
    loaders.add_argument("--workers", type=int, default=cores, help="decoding processes or threads of each loader")
    loaders.add_argument("--batch-size", type=int, default=64, help="images per batch")
    loaders.add_argument("--rounds", type=int, default=3, help="timed turns of each loader")
    loaders.add_argument("--steps", type=int, default=4, help="training steps in each turn")
    loaders.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where it is")
    loaders.add_argument("--threads", type=int, default=1, help="CPU threads of the training")


def _add_ray(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "a training under Ray Train beside the same one under plain torch.distributed; refused with RAY_ADDRESS"
    ray = benchmarks.add_parser(
        "ray", help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    ray.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    ray.add_argument("--workers", type=int, default=2, help="processes of each group; on GPUs each has one")
    ray.add_argument("--rounds", type=int, default=15, help="timed turns of each group, 5 or more")
    ray.add_argument("--steps", type=int, default=10, help="training steps in each turn")
    ray.add_argument("--model", default="resnet20", help="architecture by name")
    ray.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    ray.add_argument("--batch-size", type=int, default=64, help="images per step over all workers of a group")
    ray.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")


if __name__ == "__main__":
    sys.exit(main())
