"""The demo's suite: dense, simple combination and EPSD on real handwritten digits."""

from dataclasses import replace
from typing import Any

from benchmarks.suites.suite import Line, Suite, at, labelled
from benchmarks.suites.table import ACCURACY, COSTS, Table
from pipelines.recipes import digits_epsd

METHODS = ("dense", "early_pruning", "epsd")

TABLE = Table(
    title="Early pruning with self-distillation on real handwritten digits",
    suite="demo",
    rows={"method_label": "method", "sparsity": "sparsity", "workers": "workers"},
    headline=ACCURACY,
    columns=COSTS,
    notes=(
        "ProsPr + CS-KD is what the EPSD paper calls the simple combination. scikit-learn's digits cannot tell the "
        "methods apart at this sparsity: one of the 359 test images is 0.28 points.",
    ),
    controls={"EPSD (CS-KD)": "ProsPr + CS-KD", "ProsPr + CS-KD": "dense"},
)


def demo(reduced: bool = False, **places: Any) -> Suite:
    """Two seeds of three methods. It is small already: reduced, it is the same."""
    found = {method: at(digits_epsd(method), places) for method in METHODS}
    labels = {method: labelled(each) for method, each in found.items()}
    controls = {"epsd": labels["early_pruning"], "early_pruning": labels["dense"]}
    return Suite(
        name="demo",
        title=TABLE.title,
        paper="EPSD (Chen et al., AAAI 2024, arXiv 2402.00084)",
        question="Does the whole path work? The data set is too small to tell the methods apart.",
        lines=tuple(Line(labels[name], replace(each, seed=0), controls.get(name)) for name, each in found.items()),
        seeds=(0, 1),
        notes=TABLE.notes,
        recipe="digits_epsd",
    )
