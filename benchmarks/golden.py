"""Golden losses: 20 training steps of every method, compared with those of an earlier version.

    python benchmarks/golden.py             # run, and show the difference to tests/golden/losses.json
    python benchmarks/golden.py --write     # the same, then store the new losses: commit them with the reason

Every method, objective and criterion of the registries trains a network of three convolutions on scikit-learn's digits
in float64. Every epoch is one step, so the history of a run holds the loss of each step. Float64 keeps processors and
PyTorch versions within RELATIVE_BOUND of each other; a change of a temperature, a mask or a data order is far outside.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from compression.criteria import CRITERIA
from compression.methods import EPSD, PDD, Dense, EarlyPruning, IterativeMagnitude, PruneThenDistill
from compression.objectives import OBJECTIVES, CSKDConfig, DLBConfig, PSKDConfig
from pipelines.data.config import Digits
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD, Cosine

FILE = Path(__file__).parent.parent / "tests" / "golden" / "losses.json"

RELATIVE_BOUND = 1e-7
"""Largest difference, relative to the golden loss, that counts as the same."""

DATA = Digits(val_fraction=0.9)
NUM_IMAGES = 143
"""Training images of DATA, which make one step."""

TRAINING = Training(20, NUM_IMAGES, SGD(lr=0.05), Cosine(), precision="float64", channels_last=False)


def cases() -> dict[str, Any]:
    """Name -> method config."""
    found: dict[str, Any] = {f"dense, {name}": Dense(config()) for name, config in OBJECTIVES.items()}
    for name, config in CRITERIA.items():
        found[f"early pruning, {name}"] = EarlyPruning(config(), rounds=min(config().rounds, 3), sparsity=0.8)
    for distillation in (CSKDConfig(), PSKDConfig(), DLBConfig()):
        found[f"EPSD, {distillation.label}"] = EPSD(distillation, sparsity=0.8)
    for rewind in ("weights", "learning_rate", "restart"):
        found[f"iterative magnitude, {rewind}"] = IterativeMagnitude(rounds=1, rewind=rewind)
    found["Prune-then-Distill"] = PruneThenDistill(rounds=1)
    found["PDD"] = PDD()
    return found


def losses_of(method: Any, storage: Path) -> list[float]:
    """The loss of each step of the run, over all of its own trainings. RuntimeError: the run failed."""
    experiment = Experiment(method, "vgg3", DATA, TRAINING)
    work = Work(experiment, Placement(storage=str(storage)), storage, {})
    [outcome] = launch(execute, [work], Group(storage=str(storage)), lambda number, event: None)
    if outcome.error is not None:
        raise RuntimeError(f"{experiment.name}: {outcome.error}\n{outcome.traceback}")
    records = [r for r in outcome.value["history"] if r["key"] == "train/loss"]
    return [r["value"] for r in sorted(records, key=lambda r: r["step"])]


def difference(losses: list[float], golden: list[float] | None) -> float:
    """The largest relative difference; infinite where the number of steps differs or there is no golden run."""
    if golden is None or len(golden) != len(losses):
        return float("inf")
    return max(abs(new - old) / abs(old) for new, old in zip(losses, golden, strict=True))


def main() -> int:
    """0: all losses are within the bound, or were written; 1: some are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the losses of this version as the golden ones")
    write, console = parser.parse_args().write, Console(width=None if sys.stdout.isatty() else 120)
    golden: dict[str, list[float]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        storage = open_storage(folder)
        found = {name: losses_of(method, storage) for name, method in track(cases().items(), "golden losses")}
    far = {}
    for name, losses in found.items():
        far[name] = difference(losses, golden.get(name))
        said = "the same bits" if far[name] == 0 else f"relative difference {far[name]:.1e}"
        mark = "ok  " if far[name] <= RELATIVE_BOUND else "DIFF"
        console.print(f"{mark} {name:40} last loss {losses[-1]:.6f}  {said}", highlight=False, markup=False)
    for name in golden.keys() - found.keys():
        console.print(f"GONE {name}", highlight=False, markup=False)
    if write:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    return int(any(value > RELATIVE_BOUND for value in far.values()) or found.keys() != golden.keys())


if __name__ == "__main__":
    sys.exit(main())
