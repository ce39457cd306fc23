"""What training costs in time. In each benchmark the things that are compared take turns on the same machine.

python benchmarks/throughput.py step [--json] [--model NAME] [--size PIXELS] [--batch-size N] [--repetitions R] ...
python benchmarks/throughput.py loaders [--json] [--imagenet DIR] [--tiny DIR] [--workers N] ...
python benchmarks/throughput.py training [--json] [--images DIR] [--model NAME] [--batch-size N] ...
python benchmarks/throughput.py ray [--json] [--workers N] [--rounds R] [--steps S] [--model NAME] ...

step: one training step (forward, objective, backward, optimiser step) under each objective and under masks, next to
that of a dense network under cross-entropy. The images are real and held on the device; reading them is not included.

loaders: images per second from each backend (memory, ffcv, folder), from torchvision's ImageFolder and DataLoader on
the same files, and from a mock that repeats one batch. Then a training with each of them: its images per second, and
the share of its time that it waits for data. DIR holds train/<class>/* (or val/<class>/*); default: scikit-learn's
digits.

training: steady training by the loop of every experiment, next to a plain PyTorch loop with torchvision's ImageFolder
and DataLoader. On one CPU thread the times are CPU time, the DataLoader's processes included: what one core would take.
DIR holds train/<class>/* and test/<class>/* of images of --size pixels; default: scikit-learn's digits as PNG files.

ray: what Ray Train adds to a training. Three groups of N processes run the same training loop, each in
DistributedDataParallel: two are local processes (their difference is the noise) and one is started by Ray Train. They
take turns of S steps; the other two wait without using the CPU (Ray's own processes use a little, in every turn). ratio
is to the first local group in the same round. start and 1st step are seconds from the launch of a group to the first
event of a worker and to the end of its first step. A Ray is started for it on this machine, so it is refused where
RAY_ADDRESS is set. On GPUs each process has one, and the three groups share them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row
from pipelines.experiment import Training
from pipelines.optimizers import SGD

LEAST: dict[str, dict[str, int]] = {
    "step": {"size": 8, "batch_size": 2, "repetitions": 1, "threads": 1},
    "loaders": {"batch_size": 2, "rounds": 1, "steps": 1, "workers": 0, "threads": 1},
    "training": {"size": 8, "batch_size": 2, "loader_workers": 0, "rounds": 1, "steps": 1, "threads": 1},
    "ray": {"size": 8, "batch_size": 2, "rounds": 5, "steps": 1, "workers": 1},
}
"""Of the options: the digits have 8 pixels, BatchNorm takes two images, and a median needs some rounds."""

TITLES = {
    "step": "One training step: {model}, batch {batch_size}, {size} pixels, {precision}",
    "loaders": "Loaders, {workers} workers, batch {batch_size}",
    "training": "Steady training: {model}, batch {batch_size}, {size} pixels",
    "ray": "The same training by each launcher: {model}, batch {batch_size}, {size} pixels, {workers} workers",
}

CAPTIONS = {
    "step": "Medians of {repetitions} rounds by {clock} time",
    "loaders": "Medians of {rounds} rounds",
    "training": "Medians of {rounds} turns of {steps} steps by {clock} time; DataLoader: {loader_workers} processes",
    "ray": "Medians of {rounds} turns of {steps} steps; start, 1st step: seconds from launch; ray {ray}",
}

COLUMNS = {
    "step": {"variant": "{variant}", "ms a step": "{ms:.1f}", "images/s": "{images_per_second:.1f}"}
    | {"dense steps": "{ratio:.3f}"},
    "loaders": {"data": "{data}", "loader": "{loader}", "images/s": "{images_per_second:,.0f}"}
    | {"torchvision's": "{ratio_to_torchvision:.2f}", "training, images/s": "{training_images_per_second:,.1f}"}
    | {"of mock's": "{training_ratio_to_mock:.3f}", "waits for data": "{data_wait:.1%}"},
    "training": {"loop": "{loop}", "ms a step": "{ms:.1f}", "images/s": "{images_per_second:,.1f}"}
    | {"times plain": "{speedup:.2f}"},
    "ray": {"launcher": "{launcher}", "ms a step": "{ms:.1f}", "images/s": "{images_per_second:,.1f}"}
    | {"ratio": "{ratio:.3f}", "start": "{startup_seconds:.1f}", "1st step": "{first_step_seconds:.1f}"},
}
"""Benchmark -> heading -> cell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured, 2 for an error that the user has to correct."""
    options = _parser().parse_args(arguments)
    run = {"step": _step, "loaders": _loaders, "training": _training, "ray": _ray}[options.benchmark]
    try:
        for name, least in LEAST[options.benchmark].items():
            if (value := getattr(options, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
        if "threads" in options:
            torch.set_num_threads(options.threads)
        measured = run(options, _device(options.device))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print("\n".join(json.dumps(row) for row in measured))
    else:
        show(measured, Console())
    return 0


def show(rows: Sequence[Row], console: Console) -> None:
    """The rows of one benchmark as a table."""
    name, first = rows[0]["benchmark"], rows[0]
    where = "; noise floor {noise_floor:.3f}; {device}, threads: {threads}; {hardware}, torch {torch}"
    table = Table(title=TITLES[name].format(**first), caption=(CAPTIONS[name] + where).format(**first))
    for heading, cell in COLUMNS[name].items():
        table.add_column(heading, justify="right" if ":" in cell else "left")
    for row in rows:
        values = row | {"ms": 1000 * row.get("seconds_median", 0.0)}
        table.add_row(*(cell.format(**values) for cell in COLUMNS[name].values()))
    console.print(table)


def _step(options: argparse.Namespace, device: torch.device) -> list[Row]:
    from benchmarks import training_steps

    training = Training(
        batch_size=options.batch_size,
        optimizer=SGD(lr=0.01),
        precision=options.precision,
        channels_last=options.channels_last,
    )
    setting = training_steps.Setting(options.model, options.size, training, options.repetitions, device)
    return training_steps.measure(setting)


def _loaders(options: argparse.Namespace, device: torch.device) -> list[Row]:
    from benchmarks import loaders  # torchvision's import takes seconds

    setting = loaders.Setting(options.batch_size, options.workers, options.rounds, options.steps, device)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        asked = [(loaders.imagenet, options.imagenet), (loaders.tiny, options.tiny)]
        subjects = [make(root) for make, root in asked if root] or [loaders.digits(scratch)]
        return [row for subject in subjects for row in loaders.measure(subject, setting, scratch / subject.name)]


def _training(options: argparse.Namespace, device: torch.device) -> list[Row]:
    from benchmarks import plain_loop

    with tempfile.TemporaryDirectory() as folder:
        images = options.images or plain_loop.write_digits(Path(folder), options.size)
        names = ("model", "size", "batch_size", "loader_workers", "rounds", "steps")
        return plain_loop.measure(plain_loop.Setting(images, **_values(options, *names), device=device))


def _ray(options: argparse.Namespace, device: torch.device) -> list[Row]:
    from benchmarks import ray_overhead

    names = ("model", "size", "batch_size", "workers", "rounds", "steps")
    return ray_overhead.measure(ray_overhead.Setting(**_values(options, *names), device=device))


def _values(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    return torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)

    def add(name: str, what: str, **defaults: Any) -> argparse.ArgumentParser:
        """A benchmark, with those of the usual options that have a default here."""
        own = benchmarks.add_parser(name, help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        own.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
        own.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
        for option, default in defaults.items():
            own.add_argument("--" + option.replace("_", "-"), type=type(default), default=default, help=HELP[option])
        return own

    step = add(
        "step",
        "the cost of a training step under each objective and under masks",
        model="resnet18_small",
        size=32,
        batch_size=32,
        repetitions=12,
        threads=1,
    )
    step.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    step.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory layout of convolutions"
    )
    cores = min(os.cpu_count() or 1, 8)
    what = "images per second from each backend, and how long a training waits for them"
    loaders = add("loaders", what, workers=cores, batch_size=64, rounds=3, steps=4, threads=1)
    loaders.add_argument("--imagenet", type=Path, metavar="DIR", help="photographs, for 224-pixel crops")
    loaders.add_argument("--tiny", type=Path, metavar="DIR", help="Tiny-ImageNet's images of 64 pixels")
    what = "steady training next to a plain PyTorch loop with torchvision's loader"
    chosen: dict[str, Any] = {"model": "resnet20", "size": 32, "rounds": 9, "steps": 4, "threads": 1}
    training = add("training", what, **chosen, batch_size=128, loader_workers=1)
    training.add_argument("--images", type=Path, metavar="DIR", help="image files in train/<class>/ and test/<class>/")
    what = "a training under Ray Train next to the same one under plain torch.distributed; refused with RAY_ADDRESS"
    add("ray", what, workers=2, rounds=15, steps=10, model="resnet20", size=32, batch_size=64)
    return parser


HELP = {
    "model": "architecture by name",
    "size": "height and width of the images in pixels",
    "batch_size": "images per step, over all workers of a group",
    "repetitions": "timed rounds over all variants",
    "rounds": "timed turns of each",
    "steps": "training steps in each turn",
    "workers": "processes of each group, or decoding processes or threads of each loader",
    "loader_workers": "processes of the plain loop's DataLoader; 0: it reads in the training process",
    "threads": "CPU threads of the training",
}

if __name__ == "__main__":
    sys.exit(main())
