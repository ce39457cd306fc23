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
from cluster.exit import exit_process
from compression.criteria import CRITERIA
from compression.methods import EPSD, PDD, Dense, EarlyPruning, IterativeMagnitude, MethodConfig, PruneThenDistill
from compression.objectives import OBJECTIVES, CrossEntropyConfig, CSKDConfig
from pipelines.cli import controls, report
from pipelines.data.config import Images
from pipelines.driver import run_experiments
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.progress import refusing

SUITE = "every_method"
SPARSITY = 0.95
ROUNDS = 2


def methods(dense: Experiment) -> list[MethodConfig]:
    """Each criterion under cross-entropy, each objective on a dense network, and each method with its controls."""
    pruned = [EarlyPruning(criterion(), CrossEntropyConfig(), SPARSITY) for criterion in CRITERIA.values()]
    trained = [Dense(objective()) for objective in OBJECTIVES.values()]
    early = [EarlyPruning(objective=CSKDConfig(), sparsity=SPARSITY), EPSD(sparsity=SPARSITY)]
    late = [IterativeMagnitude(ROUNDS), IterativeMagnitude(ROUNDS, rewind="learning_rate", dense=dense)]
    late += [IterativeMagnitude(ROUNDS, rewind="restart", dense=dense)]
    return [*trained, *pruned, *early, *late, PruneThenDistill(dense, ROUNDS), PDD(dense)]


def experiments(root: Path, seeds: Sequence[int]) -> list[Experiment]:
    """All runs; the teachers of Prune-then-Distill and PDD are of the first seed, as in the recipes."""
    data = Images(root=str(root), name="CIFAR-10 subset, 16 px", image_size=16)
    training = Training(epochs=3, batch_size=128, optimizer=SGD(lr=0.1), schedule=Cosine())
    dense = Experiment(Dense(), "resnet20", data, training, seeds[0])
    found = []
    for seed in seeds:
        for method in methods(dense):
            experiment = dataclasses.replace(dense, method=method, seed=seed)
            found += [experiment, *controls(experiment)]
    return found


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
    todo = experiments(options.root.absolute(), options.seeds)
    status = report(run_experiments(todo, placement, SUITE, "every_method", Console()), Console())
    return status or tables.main([SUITE, "--storage", str(storage), *(["--track"] if options.track else [])])


if __name__ == "__main__":
    exit_process(main())
