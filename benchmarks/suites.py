"""Which tracked runs make which table."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
class Table:
    """All finished runs of one suite (an MLflow experiment), put together to rows.

    rows: fields of runs.parquet -> heading; runs that agree in all of them, whatever their seed, are one row.
    headline: the number that the table is about; n and the seeds stand beside it.
    columns: the others.
    notes: what a reader has to know, below the table.
    controls: label of a row -> label of the row that it is compared with, seed by seed. A label is the value of the
    first field of `rows`, or all that stands in a row's first cell but its marks, where rows share that value.
    """

    title: str
    suite: str
    rows: dict[str, str]
    headline: Column
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    controls: Mapping[str, str] = field(default_factory=dict)


_COSTS = (
    Column("nonzero_parameters", "nonzero_parameters", "non-zero parameters"),
    Column("effective_macs", "effective_macs", "effective MACs"),
    Column("train_seconds", "train_seconds", "train seconds", digits=1),
)

_ACCURACY = Column("test_accuracy", "test_accuracy_percent", "test accuracy, %", scale=100, digits=2, spread=True)


def own(suite: str) -> Table:
    """The table of any suite, for one's own runs."""
    rows = {"method_label": "method", "dataset": "data", "model": "model", "sparsity": "sparsity"}
    return Table(f"Runs of {suite}", suite, rows, _ACCURACY, _COSTS)


TABLES: dict[str, Table] = {
    "demo": Table(
        title="Early pruning with self-distillation on real handwritten digits",
        suite="demo",
        rows={"method_label": "method", "sparsity": "sparsity", "workers": "workers"},
        headline=_ACCURACY,
        columns=_COSTS,
        notes=(
            "ProsPr + CS-KD is what the EPSD paper calls the simple combination. scikit-learn's digits cannot tell the "
            "methods apart at this sparsity: one of the 359 test images is 0.28 points.",
        ),
        controls={"EPSD (CS-KD)": "ProsPr + CS-KD", "ProsPr + CS-KD": "dense"},
    ),
    "every_method": Table(
        title="Every method in a reduced setting",
        suite="every_method",
        rows={"method_label": "method", "sparsity": "sparsity"},
        headline=_ACCURACY,
        columns=(
            Column("parameters", "parameters", "parameters"),
            Column("nonzero_parameters", "nonzero_parameters", "non-zero"),
            Column("macs", "macs", "MACs"),
            Column("effective_macs", "effective_macs", "effective"),
            Column("compacted_macs", "compacted_macs", "compacted"),
            Column("test_entropy", "test_entropy_nats", "entropy, nats", digits=3),
            Column("own_dense_epochs", "own_dense_epochs", "own dense epochs", digits=1),
            Column("dense_epochs", "dense_epochs", "with teachers", digits=1),
        ),
        notes=(
            "ResNet-20 on a part of CIFAR-10 (7,728 training and 932 test images, scaled to 16 pixels), three epochs a "
            "training where papers take 150 to 300. One test image is 0.11 points, a single run's standard error about "
            "1.5. The table shows that each method runs, what it leaves and what it costs. It is too small to rank "
            "methods: nothing is trained to its end, so whatever trains longer (DLB, the rounds of pruning) looks "
            "better, and the pruned teacher of Prune-then-Distill has had three times the epochs of the dense one. "
            "Neither its claim nor EPSD's nor PDD's can be read off it.",
            "Epochs are floating-point operations, in epochs of the dense network by cross-entropy; a teacher that "
            "several rows share is counted whole in each of them.",
        ),
        controls={
            **{
                f"dense ({objective})": "dense"
                for objective in ("CS-KD", "DLB", "KD", "LS", "PS-KD", "Tf-KD reg", "Tf-KD self")
            },
            **{
                f"{criterion} + CE": "random + CE"
                for criterion in ("FORCE", "GraSP", "Iter-SNIP", "ProsPr", "SNIP", "SynFlow", "magnitude")
            },
            "ProsPr + CS-KD": "ProsPr + CE",
            "EPSD (CS-KD)": "ProsPr + CS-KD",
            "IMP, LR rewinding": "LTH",
            "IMP, restart": "LTH",
            "PtD (derived student, teacher 36% pruned)": (
                "PtD control: dense teacher (derived student, teacher 36% pruned)"
            ),
            "PDD, 0.3 of macs removed": "PDD control: no teacher, 0.3 of macs removed",
        },
    ),
}
