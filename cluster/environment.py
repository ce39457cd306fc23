"""Environment variables of processes that are started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""The network interface of workers that are all on this machine."""


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that holds the numeric libraries of a new process to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These environment variables inside the block, for what is started or read there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
