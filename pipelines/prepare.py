"""Write a data set in its official form as FFCV's .beton files, for training with --data.backend ffcv.

    python pipelines/prepare.py cifar10 --source data --out data/cifar10-beton
    python pipelines/prepare.py imagenet --source TARS --out BETON                    # official tars, or train/, val/
    python pipelines/prepare.py imagenet --source DIR --out DIR --preset ffcv_imagenet_small
    python pipelines/prepare.py tiny_imagenet --source DIR --out BETON --subset       # a part of the classes
    python pipelines/prepare.py images --source DIR --out BETON --name flowers --image-size 128
    python pipelines/prepare.py voc --source DIR --out BETON                          # DIR holds VOCdevkit

OUT gets train.beton, test.beton and, last, manifest.json: where that is, everything is. A command that is stopped
leaves nothing there; the same one again does nothing where its work is done. OUT may be SOURCE, or hold other things.
"""

from __future__ import annotations

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

SHOWN = 20
"""Names of images that are listed on the screen; the manifest has all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 = prepared, 1 = a worker process died or failed, 2 = something is to be corrected, 130 = stopped by Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        done = run(options)
    except (ValueError, OSError) as error:
        return _complain(f"error: {error}", 2)
    except RuntimeError as error:
        return _complain(f"error: {error}", 1)
    except KeyboardInterrupt:
        return _complain("stopped; nothing was kept", 130)
    finally:
        signal.signal(signal.SIGTERM, before)
    show(done, Console())
    return 0


def run(options: argparse.Namespace) -> Manifest:
    """Prepare what the options say. Errors as `prepare`."""
    chosen = SETS[options.set]
    stored = storage(
        options.set,
        options.preset,
        options.write,
        options.max_side,
        options.jpeg_share,
        options.quality,
        options.image_size,
    )
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers must be 0 or more, not {options.workers}")
    if options.name and not chosen.named:
        raise ValueError(f"--name is for images, imagenet and cub: {options.set} has a name of its own; leave it out")
    if options.overwrite or not (options.out / manifest.FILE).exists():
        require_installed()  # before a large source is looked through
    source = chosen.read(options.source, options.name or options.set)
    source.check_complete(options.subset)
    console = Console(stderr=True)
    announce(source, console)
    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    job = Job(options.set, source, stored, options.strict)
    with Display(console) as display:
        return prepare(job, options.out, workers, options.overwrite, display)


def announce(source: Source, console: Console) -> None:
    """What was found, before anything is written."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in source.parts.items())
    lines = [f"{source.name}: {len(source.classes):,} classes, {counts}"]
    lines += [f"  incomplete: {what}" for what in source.missing]
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def show(done: Manifest, console: Console) -> None:
    """What is there now, and what became of odd images."""
    lines = [f"{done.name} is prepared in {done.folder} (fingerprint {done.fingerprint})"]
    for part in done.parts.values():
        lines.append(
            f"  {part.file}: {part.samples:,} images ({part.raw:,} raw, {part.jpeg:,} JPEG), {part.bytes / 1e6:,.1f} MB"
        )
        if part.converted:
            lines.append(f"    {part.converted:,} were no RGB images, or no JPEG under the name of one: converted")
        if part.left_out:
            lines.append(f"    {len(part.left_out):,} could not be read and are left out:")
            lines += [f"      {each.name}: {each.why}" for each in part.left_out[:SHOWN]]
        if len(part.left_out) > SHOWN:
            lines.append(f"      and {len(part.left_out) - SHOWN:,} more: see {done.folder / manifest.FILE}")
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)  # through every `finally`: nothing is left


def _complain(text: str, status: int) -> int:
    Console(stderr=True).print(text, style="red", soft_wrap=True, highlight=False, markup=False)
    return status


def _parser() -> argparse.ArgumentParser:
    sets = "\n".join(f"  {name:14} {each.what}" for name, each in SETS.items())
    presets = "\n".join(f"  {name:20} {each.what}" for name, each in PRESETS.items())
    parser = argparse.ArgumentParser(
        prog="pipelines/prepare.py",
        description=f"{__doc__}\nsets:\n{sets}\n\npresets:\n{presets}",
        epilog="Without options: imagenet and VOC as ffcv_imagenet, cub raw with sides up to 500 pixels, the others\n"
        "raw at one size (32 for CIFAR, 64 for Tiny-ImageNet and images), pixel for pixel as in the memory backend.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", metavar="SET", choices=list(SETS), help="which data set; see above")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder of the official files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into; may be SOURCE")
    parser.add_argument("--name", help="name in tables, for images and for other sets in ImageNet's or CUB's layout")
    parser.add_argument("--subset", action="store_true", help="the source is a part of the data set; results say so")
    parser.add_argument("--strict", action="store_true", help="broken, grey, CMYK... images are errors")
    parser.add_argument("--overwrite", action="store_true", help="write again what is in OUT")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; all cores unless given; 0: no others")
    how = parser.add_argument_group("how images are stored")
    how.add_argument("--preset", choices=list(PRESETS), help="see above; other options change it")
    how.add_argument("--write", choices=["raw", "jpg", "mix"], help="as pixels, as JPEG, or some so and some so")
    how.add_argument("--jpeg-share", type=float, metavar="P", help="of a mix: share of JPEG, 0 to 1 (0.5)")
    how.add_argument(
        "--quality", type=int, metavar="Q", help="of JPEG, 1 to 95 (90); RGB JPEGs that fit stay as they are"
    )
    how.add_argument("--max-side", type=int, metavar="N", help="larger images are shrunk to this longest side")
    how.add_argument("--image-size", type=int, metavar="N", help="of images: short side resized, centre cropped (64)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
