"""Write an official data set as FFCV's .beton files, for training with --data.backend ffcv.

    python pipelines/prepare.py cifar10 --source data --out data/cifar10-beton
    python pipelines/prepare.py imagenet --source TARS --out BETON                    # official tars, or train/, val/
    python pipelines/prepare.py imagenet --source DIR --out DIR --preset ffcv_imagenet_small
    python pipelines/prepare.py tiny_imagenet --source DIR --out BETON --subset       # only some classes
    python pipelines/prepare.py images --source DIR --out BETON --name flowers --image-size 128
    python pipelines/prepare.py voc --source DIR --out BETON                          # DIR holds VOCdevkit

OUT gets train.beton, test.beton and, last, manifest.json. A command that is stopped leaves nothing in OUT. If the files
already exist, the same command does nothing. OUT may be SOURCE, and may hold other files.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipelines.data.ffcv.installed import require_installed
from pipelines.data.ffcv.part_writer import Job
from pipelines.data.preparing import manifest
from pipelines.data.preparing.convert import prepare
from pipelines.data.preparing.display import Display
from pipelines.data.preparing.manifest import Manifest
from pipelines.data.preparing.sets import PRESETS, SETS, storage
from pipelines.data.source import Source
from pipelines.progress import complain, say

PRESETS_HELP = """presets:
  ffcv_imagenet        longest side 500 pixels, half of the images as JPEG of quality 90
  ffcv_imagenet_small  longest side 400 pixels, a tenth as JPEG; ffcv-imagenet trains ResNet-18 on it
  raw                  no JPEG: the fastest to read, and the largest"""

SHOWN = 20
"""Maximal number of image names in the output; the manifest has all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 = prepared, 1 = a worker process died or failed, 2 = wrong source or options, 130 = stopped by Ctrl-C."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        done = run(options)
    except (ValueError, OSError, RuntimeError) as error:
        complain(f"error: {error}")
        return 1 if isinstance(error, RuntimeError) else 2
    except KeyboardInterrupt:
        complain("stopped; nothing was written")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    show(done, Console())
    return 0


def run(options: argparse.Namespace) -> Manifest:
    """Errors as `prepare`."""
    chosen = SETS[options.set]
    names = ("preset", "write", "max_side", "jpeg_share", "quality", "image_size")
    stored = storage(options.set, **{name: getattr(options, name) for name in names})
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers must be 0 or more, not {options.workers}")
    if options.name and not chosen.named:
        raise ValueError(f"--name is for images, imagenet and cub: {options.set} has a fixed name; leave it out")
    if options.overwrite or not (options.out / manifest.FILE).exists():
        require_installed()  # before a large source is scanned
    source = chosen.read(options.source, options.name)
    source.check_complete(options.subset)
    console = Console(stderr=True)
    announce(source, console)
    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    job = Job(options.set, source, stored, options.strict)
    with Display(console) as display:
        return prepare(job, options.out, workers, options.overwrite, display)


def announce(source: Source, console: Console) -> None:
    """Print what was found, before anything is written."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in source.parts.items())
    lines = [f"{source.name}: {len(source.classes):,} classes, {counts}"]
    lines += [f"  incomplete: {what}" for what in source.missing]
    say(console, "\n".join(lines))


def show(done: Manifest, console: Console) -> None:
    """Print what was written, and which images were converted or left out."""
    lines = [f"{done.name} is prepared in {done.folder} (fingerprint {done.fingerprint})"]
    for part in done.parts.values():
        counts = f"{part.samples:,} images ({part.raw:,} raw, {part.jpeg:,} JPEG)"
        lines.append(f"  {part.file}: {counts}, {part.bytes / 1e6:,.1f} MB")
        if part.converted:
            lines.append(f"    {part.converted:,} were not RGB, or had a JPEG's name and another format: converted")
        if part.left_out:
            lines.append(f"    {len(part.left_out):,} could not be read and were left out:")
            lines += [f"      {each.name}: {each.why}" for each in part.left_out[:SHOWN]]
        if len(part.left_out) > SHOWN:
            lines.append(f"      and {len(part.left_out) - SHOWN:,} more: see {done.folder / manifest.FILE}")
    say(console, "\n".join(lines))


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)  # runs every `finally`, so nothing is left


def _parser() -> argparse.ArgumentParser:
    sets = "\n".join(f"  {name:14} {each.what}" for name, each in SETS.items())
    parser = argparse.ArgumentParser(
        prog="pipelines/prepare.py",
        description=f"{__doc__}\nsets:\n{sets}\n\n{PRESETS_HELP}",
        epilog="Defaults: imagenet and VOC as ffcv_imagenet; cub raw with a longest side of 500 pixels; the others\n"
        "raw at one size (32 for CIFAR, 64 for Tiny-ImageNet and images), with the same pixels as the memory backend.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", metavar="SET", choices=list(SETS), help="data set, see above")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder of the official files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into; may be SOURCE")
    parser.add_argument("--name", help="name in tables: of images, or of another set in ImageNet's or CUB's layout")
    parser.add_argument("--subset", action="store_true", help="the source is incomplete; results are labelled -subset")
    parser.add_argument("--strict", action="store_true", help="broken, grey or CMYK images are errors")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores; 0: none)")
    how = parser.add_argument_group("how images are stored")
    how.add_argument("--preset", choices=list(PRESETS), help="see above; the options below override it")
    how.add_argument("--write", choices=["raw", "jpg", "mix"], help="as pixels, as JPEG, or a mix")
    how.add_argument("--jpeg-share", type=float, metavar="P", help="share of JPEG in a mix, 0 to 1 (default 0.5)")
    help_quality = "of JPEG, 1 to 95 (default 90); fitting RGB JPEGs stay as is"
    how.add_argument("--quality", type=int, metavar="Q", help=help_quality)
    how.add_argument("--max-side", type=int, metavar="N", help="larger images are resized to this longest side")
    help_size = "of images: short side resized, centre crop (default 64)"
    how.add_argument("--image-size", type=int, metavar="N", help=help_size)
    return parser


if __name__ == "__main__":
    sys.exit(main())
