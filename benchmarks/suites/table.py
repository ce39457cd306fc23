"""Table: which numbers of which tracked runs stand in it, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.experiment import Experiment


@dataclass(frozen=True)
class Column:
    """A mean over the runs of a row.

    field: column of runs.parquet; its values are multiplied by `scale` and shown with `digits` decimals.
    name: its column in CSV files, with the unit where it has one; "_mean" and "_std" are added.
    heading: its heading for readers.
    spread: show the standard deviation, too.
    """

    field: str
    name: str
    heading: str
    scale: float = 1.0
    digits: int = 0
    spread: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a suite's table.

    experiment: with the first seed of the suite; the others only differ in the seed.
    control: the label of the line with which it is compared, seed by seed.
    """

    label: str
    experiment: Experiment
    control: str | None = None


@dataclass(frozen=True)
class Table:
    """All finished runs of one suite (an MLflow experiment), put together to rows.

    rows: fields of runs.parquet -> heading; runs that agree in all of them, whatever their seed, are one row.
    headline: the number that the table is about; n and the seeds stand beside it.
    columns: the others.
    notes: what a reader has to know, below the table.
    controls: label of a row -> label of the row that it is compared with, seed by seed. A label is the value of the
    first field of `rows`, or all that stands in a row's first cell but its marks, where rows share that value.
    published: show what papers print for the same rows (benchmarks/published.py).
    lines: of a suite, which say themselves what they are compared with; `controls` is for tables without them.
    """

    title: str
    suite: str
    rows: dict[str, str]
    headline: Column
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    controls: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    published: bool = False


COSTS = (
    Column("nonzero_parameters", "nonzero_parameters", "non-zero parameters"),
    Column("effective_macs", "effective_macs", "effective MACs"),
    Column("train_seconds", "train_seconds", "train seconds", digits=1),
)

ACCURACY = Column("test_accuracy", "test_accuracy_percent", "test accuracy, %", scale=100, digits=2, spread=True)


def own(suite: str) -> Table:
    """The table of any suite, for one's own runs."""
    rows = {"method_label": "method", "dataset": "data", "model": "model", "sparsity": "sparsity"}
    return Table(f"Runs of {suite}", suite, rows, ACCURACY, COSTS)
