"""Sweeps as commands: started, killed, read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent

SHORT = ("--training.epochs", "2", "--model", "vgg3")
"""A trial of a second."""

TRIAL = "ray::ImplicitFunc"
"""Beginning of the name that Ray gives the process of a trial."""


LEFT_OUT = ("time_ms", "line", "checksum")
"""Keys of an entry that say nothing of the search."""


class Running:
    """A sweep that runs as a command of its own, with everything that it starts."""

    def __init__(self, storage: Path, *options: str) -> None:
        self.storage = storage
        command = [sys.executable, "pipelines/sweep.py", *options, "--storage", str(storage)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._log = storage.with_name(f"{storage.name}-{time.monotonic_ns()}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, what: Callable[[], bool], timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not what():
            assert self.process.poll() is None, f"the sweep has ended:\n{self.output}"
            assert time.monotonic() < deadline, f"not true after {timeout} s:\n{self.output}"
            time.sleep(0.02)

    def end(self, timeout: float = 240) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the sweep did not end in {timeout} s:\n{self.output}") from error

    def trial_processes(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, IndexError):
                if child.cmdline()[0].startswith(TRIAL) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def kill_driver(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_all(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        for each in (*children, psutil.Process(self.process.pid)):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()


def journal(storage: Path) -> list[dict[str, Any]]:
    """The entries of the only sweep of a storage, without what says nothing of the search."""
    found = list(storage.glob("sweeps/*/journal.jsonl"))
    if not found:
        return []
    [path] = found
    whole = path.read_bytes().rpartition(b"\n")[0]
    entries = [json.loads(line) for line in whole.split(b"\n")] if whole else []
    return [{key: value for key, value in entry.items() if key not in LEFT_OUT} for entry in entries]


def at_entry(storage: Path, number: int, draw: random.Random) -> Callable[[], bool]:
    """A condition: the journal has so many entries, and a drawn moment has passed."""
    wait = draw.uniform(0, 1.0)

    def reached() -> bool:
        if len(journal(storage)) < number:
            return False
        time.sleep(wait)
        return True

    return reached
