"""Every method, objective and criterion in one reduced setting on real photographs.

ResNet-20 at 16 pixels, three epochs a training, two rounds of pruning. Enough to see that each method does what it says
and what it costs; not to rank them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.suites.suite import Line, Suite, at, labelled, reduced_name, small
from benchmarks.suites.table import ACCURACY, Column, Table
from compression.criteria import CRITERIA
from compression.methods import EPSD, PDD, Dense, EarlyPruning, IterativeMagnitude, MethodConfig, PruneThenDistill
from compression.objectives import OBJECTIVES, CrossEntropyConfig, CSKDConfig
from pipelines.cli import controls
from pipelines.data.config import Images
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine

SPARSITY = 0.95
ROUNDS = 2

TABLE = Table(
    title="Every method in a reduced setting",
    suite="every_method",
    rows={"method_label": "method", "sparsity": "sparsity"},
    headline=ACCURACY,
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
)


def methods(dense: Experiment) -> list[MethodConfig]:
    """Each criterion under cross-entropy, each objective on a dense network, and each method with its controls."""
    pruned = [EarlyPruning(criterion(), CrossEntropyConfig(), SPARSITY) for criterion in CRITERIA.values()]
    trained = [Dense(objective()) for objective in OBJECTIVES.values()]
    early = [EarlyPruning(objective=CSKDConfig(), sparsity=SPARSITY), EPSD(sparsity=SPARSITY)]
    late = [IterativeMagnitude(ROUNDS), IterativeMagnitude(ROUNDS, rewind="learning_rate", dense=dense)]
    late += [IterativeMagnitude(ROUNDS, rewind="restart", dense=dense)]
    return [*trained, *pruned, *early, *late, PruneThenDistill(dense, ROUNDS), PDD(dense)]


def every_method(reduced: bool = False, **places: Any) -> Suite:
    """Two seeds of everything; the teachers of Prune-then-Distill and PDD are of the first, as in the recipes."""
    if reduced:
        dense = replace(small(places, epochs=1), method=Dense())
    else:
        data = Images(name="CIFAR-10 subset, 16 px", image_size=16)
        training = Training(epochs=3, batch_size=128, optimizer=SGD(lr=0.1), schedule=Cosine())
        dense = at(Experiment(Dense(), "resnet20", data, training), places)
    return Suite(
        name=reduced_name("every_method", reduced),
        title=TABLE.title,
        paper="All papers of docs/methods.md",
        question="What does each method leave, and what does it cost? Methods cannot be ranked by it.",
        lines=tuple(_lines(dense)),
        seeds=(0, 1),
        notes=() if reduced else TABLE.notes,
        recipe="images_epsd",
    )


def _lines(dense: Experiment) -> Iterator[Line]:
    mains = [replace(dense, method=method) for method in methods(dense)]
    found = [each for main in mains for each in (main, *controls(main))]
    labels = {each.method.label: labelled(each) for each in found}
    for each in found:
        control = TABLE.controls.get(each.method.label)
        yield Line(labelled(each), each, None if control is None else labels[control])
