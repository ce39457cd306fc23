"""Whether FFCV is there, asked before anything is read or written with it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import torch

PACKAGES = "libopencv-dev libturbojpeg0-dev pkg-config g++"
"""Debian's packages against which it builds; as in .ci/install-ffcv."""


def has_ffcv() -> bool:
    """Whether it is installed, without the seconds that its import takes."""
    try:
        return find_spec("ffcv") is not None
    except ImportError:
        return False


def require_installed() -> None:
    """ValueError that says how to install FFCV, and what does without it, where it is not. Imports nothing."""
    if not has_ffcv():
        raise _absent("there is no module ffcv")


def require_ffcv() -> None:
    """As `require_installed`, also where it is installed and cannot be imported."""
    try:
        with threads_kept():
            import ffcv  # noqa: F401
    except ImportError as error:
        raise _absent(str(error)) from error


def _absent(why: str) -> ValueError:
    return ValueError(
        f"FFCV is not installed ({why}): install Debian's packages that it builds against (sudo apt-get install "
        f"{PACKAGES}), then run 'make -B ffcv'; the other backends (--data.backend folder, and memory for small "
        "images) do without it and without prepared files"
    )


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Inside, FFCV may be imported: torch keeps its number of threads, and numba starts none.

    FFCV sets both to 1. numba's threads, once started, write a complaint to stdout whenever a process forks.
    """
    try:
        import numba
    except ImportError:  # then FFCV cannot be imported either, and who tries says so
        yield
        return
    kept, num_threads = numba.set_num_threads, torch.get_num_threads()
    numba.set_num_threads = lambda n: None
    try:
        yield
    finally:
        numba.set_num_threads = kept
        if (compiler := sys.modules.get("ffcv.pipeline.compiler")) is not None:
            setattr(compiler, "set_num_threads", kept)  # noqa: B010 (the module's type is not known to have it)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
