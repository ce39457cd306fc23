"""The demo: dense, simple combination and EPSD on real digits, tracked and tabulated in a few minutes on two cores.

python benchmarks/demo.py [--storage DIR]
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import tables
from benchmarks.suites import SUITES, experiments
from pipelines.cli import report
from pipelines.driver import Ended, run_experiments
from pipelines.experiment import Experiment, Placement
from pipelines.progress import refusing
from pipelines.recipes import digits_epsd

SUITE = "demo"
SEED_ON_RAY = 2


@refusing(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, make the table, say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="storage", help="folder that holds everything of every run")
    parser.add_argument("--track", action="store_true", help="write the table to results/, not to the storage")
    options = parser.parse_args(argv)
    storage = Path(options.storage).absolute()
    console = Console()

    def run(todo: list[Experiment], placement: Placement) -> list[Ended]:
        return run_experiments(todo, placement, SUITE, "digits_epsd", console)

    console.print("Six experiments side by side, in two processes of one thread each", style="bold")
    ended = run(experiments(SUITES[SUITE]()), Placement(parallel=2, storage=str(storage)))
    console.print("One more, by two Ray Train workers", style="bold")
    on_ray = Placement(workers=2, launcher="ray", storage=str(storage))
    ended += run([dataclasses.replace(digits_epsd(), seed=SEED_ON_RAY)], on_ray)
    status = report(ended, console)
    if status:
        return status
    status = tables.main([SUITE, "--storage", str(storage), *(["--track"] if options.track else [])])
    ui = "make ui" if options.storage == "storage" else f"make ui STORAGE={storage}"
    console.print(f"\nEverything of every run: {storage}/runs\nThe runs in MLflow's UI: {ui}", soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
