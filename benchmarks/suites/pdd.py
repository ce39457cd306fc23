"""PDD's table (Dan et al., Cognitive Computation 16, 2024, doi 10.1007/s12559-024-10350-9): three pairs of networks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.suites.suite import REDUCED_NOTE, REDUCED_SEEDS, Line, Suite, at, reduced_name, small
from compression.methods import PDD, Dense
from compression.objectives import KDConfig
from pipelines.experiment import Experiment
from pipelines.recipes import cifar10_pdd, cifar100_pdd

PAIRS = (("vgg16_mlp", "vgg11_mlp"), ("resnet56", "resnet20"), ("resnet56", "vgg11_mlp"))
"""Teacher and student."""


def pdd(reduced: bool = False, **places: Any) -> Suite:
    """Each pair with and without its teacher, and the whole student by distillation alone."""
    if reduced:
        dense = replace(small(places, epochs=1), method=Dense())
        students = [replace(dense, method=PDD(dense))]
    else:
        students = [
            at(recipe(teacher=teacher, student=student), places)
            for recipe in (cifar10_pdd, cifar100_pdd)
            for teacher, student in PAIRS
        ]
    return Suite(
        name=reduced_name("pdd", reduced),
        title=f"Pruning during distillation{' on small images' if reduced else ''}",
        paper="PDD (Dan et al., Cognitive Computation 16, 2024, doi 10.1007/s12559-024-10350-9)",
        question=(
            "Does the student keep its accuracy when it loses channels while it learns, against the whole student by "
            "distillation alone, trained as long? And does its teacher matter? It cannot say whether pruning during "
            "distillation beats pruning after it or before it: there is no method for these two orders yet."
        ),
        lines=tuple(line for student in students for line in _lines(student)),
        seeds=REDUCED_SEEDS if reduced else (0, 1, 2),
        notes=(
            "Pairs and schedules of the students: found in the authors' code. Schedule of the teachers, reductions of "
            "pairs that the abstract does not name, and seeds: chosen here. Distillation alone has the schedule of the "
            "fine-tuning, stretched to both stages. All students share the teachers of seed 0.",
            *([REDUCED_NOTE] if reduced else []),
        ),
        recipe="cifar10_pdd",
    )


def _lines(student: Experiment) -> Iterator[Line]:
    method = student.method
    assert isinstance(method, PDD)
    gating = method.gating or student.training
    whole = replace(student.training, epochs=gating.epochs + student.training.epochs)
    distil = Dense(KDConfig(method.teacher, method.temperature, method.alpha))
    pair = f"{method.teacher.model} teaches {student.model} on {student.data.label}"
    alone = Line(f"{distil.label}, {pair}", replace(student, method=distil, training=whole))
    yield alone
    yield Line(f"{method.label}, {pair}", student, alone.label)
    without = replace(method, distill=False)
    yield Line(f"{without.label}, {pair}", replace(student, method=without), f"{method.label}, {pair}")
    both = replace(method, distill_finetune=True)
    yield Line(f"{method.label}, fine-tuned by KD, {pair}", replace(student, method=both), alone.label)
