"""What child processes are given: environment variables, and time to shut down."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""The network interface of workers that are all on this machine."""

SHUTDOWN_GRACE_SECONDS = 100.0
"""How long processes and threads that were asked to stop may take, to save a checkpoint for example. After that they
are killed. A spot machine is taken away 120 s after its notice."""


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    with contextlib.suppress(ImportError):
        return importlib.util.find_spec(package) is not None
    return False


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that limits the numeric libraries of a new process to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables inside the block."""
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
