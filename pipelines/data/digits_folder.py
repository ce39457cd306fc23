"""scikit-learn's digits written as ImageNet's folders, so that the folder backend runs on a laptop."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from pipelines.data import sources

_PARTS = {"train": "train", "test": "val"}


def write_digits_as_imagenet(root: str | Path, size: int = 40) -> Path:
    """Write train/n0000000<d>/*.JPEG and val/... of size x size pixels below `root`, unless they are there.

    The folder appears whole or not at all, also when several processes write it at once.
    ValueError: `root` exists and holds something else.
    """
    root = Path(root)
    if _is_written(root):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} holds something else than digits in ImageNet's layout: give another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        whole = Path(temporary) / "whole"
        _write(whole, size)
        try:
            whole.rename(root)
        except OSError:
            # Another process was first; its folder is as good, and the context removes ours.
            if not _is_written(root):
                raise
    return root


def _is_written(root: Path) -> bool:
    return all((root / folder / f"n{label:08d}").is_dir() for folder in _PARTS.values() for label in range(10))


def _write(root: Path, size: int) -> None:
    digits = sources.read_digits()
    for part, folder in _PARTS.items():
        for number, (pixels, label) in enumerate(zip(digits.images[part], digits.labels[part].tolist(), strict=True)):
            path = root / folder / f"n{label:08d}" / f"n{label:08d}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)
