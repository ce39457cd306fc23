"""What training costs in time, measured side by side in one process.

python benchmarks/throughput.py step [--json] [--model NAME] [--size PIXELS] [--batch-size N] [--repetitions R] ...

step: one training step (forward, objective, backward, optimiser step) under each objective and under masks, beside that
of a dense network under plain cross-entropy. The images are real and lie on the device; reading them is not part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.training_steps import Row, Setting, measure
from pipelines.experiment import Training
from pipelines.optimizers import SGD

LEAST = {"size": 8, "batch_size": 2, "repetitions": 1, "threads": 1}
"""Of the options: the digits have 8 pixels, and BatchNorm takes two images where one pixel is left."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured, 2 for what the user has to correct."""
    options = _parser().parse_args(arguments)
    try:
        setting = _setting(options)
        torch.set_num_threads(options.threads)
        measured = measure(setting)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print("\n".join(json.dumps(row) for row in measured))
    else:
        show(measured, Console())
    return 0


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


def _setting(options: argparse.Namespace) -> Setting:
    for name, least in LEAST.items():
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    device = torch.device(("cuda" if has_cuda else "cpu") if options.device == "auto" else options.device)
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
