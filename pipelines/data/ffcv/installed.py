"""Check that FFCV is installed, before anything is read or written with it."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import torch

PACKAGES = "libopencv-dev libturbojpeg0-dev pkg-config g++"
"""Debian packages that FFCV's build needs; as in .ci/install-ffcv."""


def has_ffcv() -> bool:
    """Whether FFCV is installed; does not import it, which takes seconds."""
    try:
        return find_spec("ffcv") is not None
    except ImportError:
        return False


def require_installed() -> None:
    """ValueError: FFCV is not installed; says how to install it, and what works without it. Does not import FFCV."""
    if not has_ffcv():
        raise _missing("there is no module ffcv")


def require_ffcv() -> None:
    """Like `require_installed`; also a ValueError if FFCV is installed but cannot be imported."""
    try:
        with threads_kept():
            import ffcv  # noqa: F401
    except ImportError as error:
        raise _missing(str(error)) from error


def _missing(why: str) -> ValueError:
    return ValueError(
        f"FFCV is not installed ({why}): install the Debian packages that its build needs (sudo apt-get install "
        f"{PACKAGES}), then run 'make -B ffcv'. The other backends need neither FFCV nor prepared files: use "
        "--data.backend folder, or memory for small images"
    )


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Import FFCV inside this context: torch keeps its number of threads, and numba starts no threads.

    FFCV's import sets both numbers to 1. Once numba has started threads, it prints a warning to stdout at every fork.
    """
    try:
        import numba  # pyright: ignore[reportMissingImports]
    except ImportError:  # then FFCV cannot be imported either, and the import reports it
        yield
        return
    kept, num_threads = numba.set_num_threads, torch.get_num_threads()
    numba.set_num_threads = lambda n: None
    try:
        yield
    finally:
        numba.set_num_threads = kept
        if (compiler := sys.modules.get("ffcv.pipeline.compiler")) is not None:
            setattr(compiler, "set_num_threads", kept)  # noqa: B010 (the type of the module does not declare it)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
