"""Group: how a list of items is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PATIENCE = 900.0
"""Seconds that a worker waits for the others inside a training step, and a group for machines that are missing."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """How to run.

    launcher: "local" (this machine's processes) or "ray" (a Ray Train worker group).
    workers: 0 for this process; N for one group of N processes that works through the items together.
    parallel: with workers <= 1, that many single-process workers side by side, each taking the next item.
    threads: torch and OMP threads of each worker.
    storage: absolute folder; Ray Train keeps its own files in its subfolder "ray".
    max_failures: how often workers that died are replaced, and go through the unfinished items again: their bodies must
        then go on from what they have saved. -1 for any number of times.
    min_workers: on Ray, go on with so many where there are not `workers`, and grow again when they come; None: never.
    patience: seconds that workers wait for each other in a collective, and Ray for machines that are missing.
    """

    storage: str
    launcher: Literal["local", "ray"] = "local"
    workers: int = 0
    parallel: int = 1
    threads: int = 1
    max_failures: int = 0
    min_workers: int | None = None
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "ray"):
            raise ValueError(f"no launcher {self.launcher!r}: use --launcher local or --launcher ray")
        if self.workers < 0 or self.parallel < 1 or self.threads < 1:
            raise ValueError(
                f"--workers {self.workers} --parallel {self.parallel} --threads {self.threads} is not possible: "
                "use 0 or more workers, and 1 or more for the other two"
            )
        if self.parallel > 1 and self.workers > 1:
            raise ValueError(
                f"--workers {self.workers} with --parallel {self.parallel}: either several workers share each item "
                f"(--workers {self.workers} --parallel 1) or single workers take items side by side "
                f"(--workers 1 --parallel {self.parallel})"
            )
        if self.min_workers is not None and self.parallel > 1:
            raise ValueError(f"--min-workers with --parallel {self.parallel} is not possible: leave one of them out")
        if self.launcher == "ray" and self.workers == 0 and self.parallel == 1:
            raise ValueError("--launcher ray needs --workers 1 or more")
        if self.max_failures < -1 or self.patience <= 0:
            raise ValueError(
                f"--max-failures {self.max_failures} --patience {self.patience} is not possible: use -1 (without end), "
                "0 or more failures, and a patience of more than 0 seconds"
            )
        if self.min_workers is not None and (self.launcher != "ray" or not 1 <= self.min_workers <= self.workers):
            raise ValueError(
                f"--min-workers {self.min_workers} needs --launcher ray, and --workers "
                f"{max(self.min_workers, 1)} or more"
            )
        if not Path(self.storage).is_absolute():
            raise ValueError(f"storage must be an absolute folder, not {self.storage!r}")

    @property
    def world_size(self) -> int:
        """How many workers share one item."""
        return max(self.workers, 1)
