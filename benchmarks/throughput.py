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
and DataLoader. On one CPU thread the times are CPU time, with that of the DataLoader's --workers processes: what one
core would take. DIR holds train/<class>/* and test/<class>/* of images of --size pixels; default: scikit-learn's digits
as PNG files.

ray: what Ray Train adds to a training. Three groups of N processes run the same training loop, each in
DistributedDataParallel: two are local processes (their difference is the noise) and one is started by Ray Train. They
take turns of S steps; the other two wait without using the CPU (Ray's own processes use a little, in every turn). ratio
is to the first local group in the same round. start and 1st step are seconds from the launch of a group to the first
event of a worker and to the end of its first step. A Ray is started for it on this machine, so it is refused where
RAY_ADDRESS is set. On GPUs each process has one, and the three groups share them.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row, Setting
from pipelines.experiment import Training
from pipelines.optimizers import SGD
from pipelines.progress import refusing

TITLES = {
    "step": "One training step: {model}, batch {batch_size}, {size} pixels, {precision}; {repetitions} rounds",
    "loaders": "Loaders, {workers} workers, batch {batch_size}; {rounds} rounds",
    "training": "Steady training: {model}, batch {batch_size}, {size} pixels; {rounds} turns of {steps} steps",
    "ray": "The same training by each launcher: {model}, batch {batch_size}, {size} pixels, {workers} workers; "
    "{rounds} turns of {steps} steps; ray {ray}",
}
CAPTION = "Medians; noise floor {noise_floor:.3f}; {device}, threads: {threads}; {hardware}, torch {torch}"

_SPEED = {"ms a step": "{ms:.1f}", "images/s": "{images_per_second:,.1f}"}
COLUMNS = {
    "step": {"variant": "{variant}", **_SPEED, "dense steps": "{ratio:.3f}"},
    "loaders": {
        "data": "{data}",
        "loader": "{loader}",
        "images/s": "{images_per_second:,.0f}",
        "torchvision's": "{ratio_to_torchvision:.2f}",
        "training, images/s": "{training_images_per_second:,.1f}",
        "of mock's": "{training_ratio_to_mock:.3f}",
        "waits for data": "{data_wait:.1%}",
    },
    "training": {"loop": "{loop}", **_SPEED, "times plain": "{speedup:.2f}"},
    "ray": {"launcher": "{launcher}", **_SPEED, "ratio": "{ratio:.3f}"}
    | {"start": "{startup_seconds:.1f}", "1st step": "{first_step_seconds:.1f}"},
}
"""Benchmark -> heading -> cell."""


@refusing(ValueError, OSError)
def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured, 2 for an error that the user has to correct."""
    options = _parser().parse_args(arguments)
    measured = _measure(options)
    if options.json:
        print("\n".join(json.dumps(row) for row in measured))
    else:
        show(measured, Console())
    return 0


def show(rows: Sequence[Row], console: Console) -> None:
    """The rows of one benchmark as a table."""
    name = rows[0]["benchmark"]
    table = Table(title=TITLES[name].format(**rows[0]), caption=CAPTION.format(**rows[0]))
    for heading, cell in COLUMNS[name].items():
        table.add_column(heading, justify="right" if ":" in cell else "left")
    for row in rows:
        values = row | {"ms": 1000 * row.get("seconds_median", 0.0)}
        table.add_row(*(cell.format(**values) for cell in COLUMNS[name].values()))
    console.print(table)


def _measure(options: argparse.Namespace) -> list[Row]:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    torch.set_num_threads(getattr(options, "threads", torch.get_num_threads()))
    values = {field.name: getattr(options, field.name) for field in fields(Setting) if field.name in options}
    setting = Setting(**{**values, "device": torch.device(device)})
    if options.benchmark == "step":
        from benchmarks import training_steps

        chosen = {"precision": options.precision, "channels_last": options.channels_last}
        training = Training(batch_size=setting.batch_size, optimizer=SGD(lr=0.01), **chosen)
        return training_steps.measure(setting, training)
    if options.benchmark == "ray":
        from benchmarks import ray_overhead

        return ray_overhead.measure(setting)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.benchmark == "training":
            from benchmarks import plain_loop

            return plain_loop.measure(setting, options.images or plain_loop.write_digits(scratch, setting.size))
        from benchmarks import loaders  # torchvision's import takes seconds

        asked = [(loaders.imagenet, options.imagenet), (loaders.tiny, options.tiny)]
        subjects = [make(root) for make, root in asked if root] or [loaders.digits(scratch)]
        return [row for subject in subjects for row in loaders.measure(subject, setting, scratch / subject.name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)

    def add(name: str, what: str, **defaults: Any) -> argparse.ArgumentParser:
        """A benchmark with these of the usual options."""
        own = benchmarks.add_parser(name, help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        own.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
        own.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
        for option, default in defaults.items():
            least = {"size": 8, "batch_size": 2, "workers": 0}.get(option, 1)
            kind = partial(_at_least, LEAST_OF_RAY.get(option, least) if name == "ray" else least)
            flag = "--repetitions" if (name, option) == ("step", "rounds") else f"--{option.replace('_', '-')}"
            own.add_argument(
                flag, dest=option, type=str if option == "model" else kind, default=default, help=HELP[option]
            )
        return own

    what = "the cost of a training step under each objective and under masks"
    step = add("step", what, model="resnet18_small", size=32, batch_size=32, rounds=12, threads=1)
    step.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    step.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory layout of convolutions"
    )
    what = "images per second from each backend, and how long a training waits for them"
    cores = min(os.cpu_count() or 1, 8)
    loaders = add("loaders", what, workers=cores, batch_size=64, rounds=3, steps=4, threads=1)
    loaders.add_argument("--imagenet", type=Path, metavar="DIR", help="photographs, for 224-pixel crops")
    loaders.add_argument("--tiny", type=Path, metavar="DIR", help="Tiny-ImageNet's images of 64 pixels")
    what = "steady training next to a plain PyTorch loop with torchvision's loader"
    usual = {"model": "resnet20", "size": 32}
    training = add("training", what, **usual, batch_size=128, workers=1, rounds=9, steps=4, threads=1)
    training.add_argument("--images", type=Path, metavar="DIR", help="image files in train/<class>/ and test/<class>/")
    what = "a training under Ray Train next to the same one under plain torch.distributed; refused with RAY_ADDRESS"
    add("ray", what, **usual, batch_size=64, workers=2, rounds=15, steps=10)
    return parser


def _at_least(least: int, text: str) -> int:
    """The digits have 8 pixels, BatchNorm takes two images where one pixel is left, and a median some rounds."""
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, not {text}")
    return int(text)


LEAST_OF_RAY = {"workers": 1, "rounds": 5}

HELP = {
    "model": "architecture by name",
    "size": "height and width of the images in pixels",
    "batch_size": "images per step, over all workers together",
    "rounds": "timed turns of each",
    "steps": "training steps in each turn",
    "workers": "processes that train together, or that decode images (training: of the plain loop's DataLoader)",
    "threads": "CPU threads of the training",
}

if __name__ == "__main__":
    sys.exit(main())
