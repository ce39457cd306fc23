"""Suite: the runs that answer one question of a paper, line by line, and the table that shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.suites.table import ACCURACY, Column, Line, Table
from compression.choose import choose
from pipelines.data.config import Digits, Images
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.teachers import with_followers


@dataclass(frozen=True)
class Budget:
    """How much every method of a suite was tuned before its runs, the same for each.

    trials: of `pipelines/sweep.py`; epochs: of each trial. 0: nothing was tuned.
    """

    trials: int = 0
    epochs: int = 0

    def __str__(self) -> str:
        if not self.trials:
            return "Tuning budget: 0 trials for every method; each has the settings of its recipe."
        return f"Tuning budget: {self.trials} trials of {self.epochs} epochs for every method."


@dataclass(frozen=True)
class Suite:
    """What one table needs.

    name: of the table, and of the MLflow experiment of its runs.
    question: what the table answers, and what it cannot.
    notes: where its values come from: found in a source, inferred, or chosen here.
    recipe: the name of the recipe of its first line, for benchmarks/plan.py.
    """

    name: str
    title: str
    paper: str
    question: str
    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    budget: Budget = Budget()
    notes: tuple[str, ...] = ()
    recipe: str = "RECIPE"


def experiments(suite: Suite) -> list[Experiment]:
    """Line by line, all seeds of a line together. Teachers are not among them: they run when they are needed."""
    return [replace(line.experiment, seed=seed) for line in suite.lines for seed in suite.seeds]


TRAINING_COST = Column("dense_epochs", "dense_epochs", "dense epochs, with teachers", digits=1)

COLUMNS = (
    Column("nonzero_parameters", "nonzero_parameters", "non-zero parameters"),
    Column("effective_macs", "effective_macs", "effective MACs"),
    TRAINING_COST,
)
"""Beside the accuracy. Nothing measured in seconds: the same runs give the same table on every machine."""


def table_of(suite: Suite) -> Table:
    """The table of a suite's runs. Lines that look alike in it are told apart by their settings."""
    rows = {"method_label": "method", "dataset": "data", "model": "model", "sparsity": "sparsity"}
    notes = (f"{suite.paper}. {suite.question}", str(suite.budget), *suite.notes)
    return Table(suite.title, suite.name, rows, ACCURACY, COLUMNS, notes, lines=suite.lines, published=True)


REDUCED_SEEDS = (0, 1)

REDUCED_NOTE = (
    "Reduced: a small network, few epochs, small images. It shows that each method runs, what it leaves and what it "
    "costs; nothing is trained to its end, so methods cannot be ranked by it."
)

OWN_PLACES = ("model", "epochs", "precision")
"""Places of a reduced suite beside the fields of its data."""


def small(places: Mapping[str, Any], epochs: int = 2) -> Experiment:
    """What a reduced suite starts from: ResNet-20 on the digits or, with a place `root`, on a folder of images.

    places: fields of the data; model, epochs and precision replace those of the reduced setting.
    ValueError: a place that there is not.
    """
    of_data = {name: value for name, value in places.items() if name not in OWN_PLACES}
    data = Images(name="images, 16 px", image_size=16) if "root" in of_data else Digits()
    length = places.get("epochs", epochs)
    training = Training(length, 128, SGD(lr=0.1), Cosine(), precision=places.get("precision", "float32"))
    experiment = Experiment(model=places.get("model", "resnet20"), data=data, training=training)
    return at(experiment, of_data)


def at(experiment: Experiment, places: Mapping[str, Any]) -> Experiment:
    """The experiment and its teachers with data at `places`: values of the data's fields, such as root or backend.

    ValueError: the data have no such field.
    """
    known = {item.name: item for item in fields(experiment.data)}
    for name in places:
        choose(f"option of {experiment.data.label}", name, known)
    moved = replace(experiment, data=replace(experiment.data, **places))
    return with_followers(moved, experiment)


def labelled(experiment: Experiment) -> str:
    """The label of a line: method and sparsity."""
    return f"{experiment.method.label}, {experiment.sparsity:g}" if experiment.sparsity else experiment.method.label


def reduced_name(name: str, reduced: bool) -> str:
    """The name of a suite; a reduced one never shares a table with the whole one."""
    return f"{name}_reduced" if reduced else name


def unique(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines, each experiment once: what two parts of a suite share is one line."""
    found: dict[str, Line] = {}
    for line in lines:
        found.setdefault(line.experiment.identity, line)
    return tuple(found.values())
