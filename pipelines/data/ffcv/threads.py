"""What importing FFCV does beside being imported, and does not here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


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
