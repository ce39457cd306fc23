"""Group: how a list of items is to be run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Group:
    """How to run.

    launcher: "local" (processes of this machine) or "ray" (a Ray Train worker group).
    workers: 0 for this process; N for one group of N processes that share each item.
    parallel: with workers <= 1, so many independent workers, each of which takes the next item.
    threads: torch and OMP threads of each worker.
    storage: absolute folder; Ray Train keeps its own files in its subfolder "ray".
    max_failures: how often workers that died are replaced and run the unfinished items again: the bodies must resume
        from what they have saved. -1: no limit.
    min_workers: on Ray, continue with so many if there are not `workers`, and grow again when there are; None: never.
    timeout: seconds that workers wait for each other in a collective, and Ray for missing machines.
    """

    storage: str
    launcher: Literal["local", "ray"] = "local"
    workers: int = 0
    parallel: int = 1
    threads: int = 1
    max_failures: int = 0
    min_workers: int | None = None
    timeout: float = 900.0

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
        if self.max_failures < -1 or self.timeout <= 0:
            raise ValueError(
                f"--max-failures {self.max_failures} --timeout {self.timeout} is not possible: use -1 (no limit), "
                "0 or more failures, and a timeout of more than 0 seconds"
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
