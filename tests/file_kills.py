"""Runs that die before a drawn file operation, or in the middle of a write. A fork server imports this once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cluster.group import Group
from cluster.launch import launch
from compression import cost
from pipelines.data.loading import arrays
from pipelines.execute import execute
from pipelines.experiment import Experiment
from tests.kill_bodies import work_in

KILLED = 9
"""Exit status of a process that has died as it was to."""

OPERATIONS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "ftruncate", "pwrite")
"""Functions of os that change files."""

torch.set_num_threads(1)
read_digits = functools.cache(arrays.read_digits)
read_digits()


class FileOperations:
    """Counts the file operations of this process, and ends it before number `kill`.

    torn: a write is then half done.
    """

    def __init__(self, kill: int, torn: bool) -> None:
        self.count, self.kill, self.torn = 0, kill, torn

    def counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.kill:
                os._exit(KILLED)
            return original(*arguments, **named)

        return call

    def write_bytes(self, path: Path, data: bytes) -> int:
        self.count += 1
        with path.open("wb") as file:
            if self.count == self.kill:
                file.write(data[: len(data) // 2 if self.torn else 0])
                file.flush()
                os._exit(KILLED)
            return file.write(data)


def run_and_die(storage: Path, experiment: Experiment, kill: int, torn: bool, answer: Connection) -> None:
    """Run in this process; sends the error and the number of file operations, unless it dies before."""
    operations = FileOperations(kill, torn)
    # What is written outlives a process also without fsync, which takes half of the time.
    real = {name: getattr(os, name) for name in OPERATIONS} | {"fsync": lambda _: None}
    patches = [mock.patch.object(os, name, operations.counted(real[name])) for name in OPERATIONS]
    patches += [
        mock.patch.object(Path, "write_bytes", lambda path, data: operations.write_bytes(path, data)),
        mock.patch.object(cost, "latency", return_value={1: 0.1}),
        mock.patch("pipelines.data.stores.read_digits", read_digits),
    ]
    for patch in patches:
        patch.start()
    [outcome] = launch(execute, [work_in(storage, experiment)], Group(storage=str(storage)), lambda *_: None)
    answer.send((outcome.traceback, operations.count))
