"""Every method, objective and criterion in one reduced setting on real photographs, through Ray Train, as a table.

python benchmarks/every_method.py --data.root DIR [--seeds 0 1] [--storage DIR]

DIR holds train/<class>/* and test/<class>/* of CIFAR-10, or of a part of it. Reduced: ResNet-20 at 16 pixels, three
epochs a training, two rounds of pruning. Enough to see that each method does what it says and what it costs; not to
rank them.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import tables
from benchmarks.suites import SUITES, experiments
from cluster.exit import exit_process
from pipelines.cli import report
from pipelines.driver import run_experiments
from pipelines.experiment import Placement
from pipelines.progress import refusing

SUITE = "every_method"


@refusing(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, make the table, say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.root", dest="root", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="one run of everything for each")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, on a Ray worker each")
    parser.add_argument("--storage", default="storage", help="folder that holds everything of every run")
    parser.add_argument("--track", action="store_true", help="write the table to results/, not to the storage")
    options = parser.parse_args(argv)
    storage = Path(options.storage).absolute()
    placement = Placement(launcher="ray", workers=1, parallel=options.parallel, storage=str(storage))
    suite = dataclasses.replace(SUITES[SUITE](root=str(options.root.absolute())), seeds=tuple(options.seeds))
    status = report(run_experiments(experiments(suite), placement, SUITE, "every_method", Console()), Console())
    return status or tables.main([SUITE, "--storage", str(storage), *(["--track"] if options.track else [])])


if __name__ == "__main__":
    exit_process(main())
