"""Prune-then-Distill's table (Park & No, ECCV 2022, arXiv 2109.14960): which teacher teaches best?"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.suites.suite import REDUCED_NOTE, REDUCED_SEEDS, Line, Suite, at, reduced_name, small, unique
from compression.methods import Dense, PruneThenDistill
from pipelines.cli import Recipe
from pipelines.experiment import Experiment
from pipelines.recipes import cifar100_prune_then_distill, tiny_imagenet_prune_then_distill

ROUNDS = {2: "36 %", 4: "59 %", 7: "79 %"}
"""Rounds of pruning 20 % of the weights -> share of the teacher's weights that they remove."""


class Teacher(NamedTuple):
    """A teacher, the recipe that trains it, and the fixed student beside those that its pruning implies."""

    network: str
    recipe: Recipe
    student: str


TEACHERS = (
    Teacher("vgg19_ptd", cifar100_prune_then_distill, "vgg11"),
    Teacher("resnet18_small", tiny_imagenet_prune_then_distill, "mobilenet_v2"),
    Teacher("resnet50_small", tiny_imagenet_prune_then_distill, "resnet18_small"),
)


def prune_then_distill(reduced: bool = False, **places: Any) -> Suite:
    """Students of pruned, dense and longer-trained teachers, of labels and of smoothed labels."""
    places = dict(places)
    if reduced:
        dense = replace(small(places, epochs=1), method=Dense())
        derived = replace(dense, method=PruneThenDistill(dense, 2))
        given = replace(dense, method=PruneThenDistill(dense, 2, student="given"))
        lines = [*_students(derived, (2,)), *_students(given, (2,))]
    else:
        lines = [line for teacher in TEACHERS for line in _lines(teacher, places)]
    return Suite(
        name=reduced_name("prune_then_distill", reduced),
        title=f"Students of pruned teachers{' on small images' if reduced else ''}",
        paper="Prune Your Model Before Distill It (Park & No, ECCV 2022, arXiv 2109.14960)",
        question=(
            "Does a student learn more from a pruned teacher than from the dense one, from one trained as long "
            "as the pruned one in all, from labels, or from smoothed labels? It cannot say whether the paper's own "
            "accuracies are met: they were not found."
        ),
        lines=unique(lines),
        seeds=REDUCED_SEEDS if reduced else (0, 1, 2),
        notes=(
            "Teachers, 36, 59 and 79 %, schedules of VGG-19 and ResNet-18, temperature 10 and alpha 0.95: found in the "
            "authors' code. Which teacher taught which student, and ResNet-50's schedule (ResNet-18's here): inferred. "
            "Number of seeds: chosen here.",
            "All students share the teachers of seed 0: the spread is that of the students. A given student's dense, "
            "label and smoothing lines do not depend on the pruning; they stand once.",
            *([REDUCED_NOTE] if reduced else []),
        ),
        recipe="cifar100_prune_then_distill",
    )


def _lines(teacher: Teacher, places: dict[str, Any]) -> Iterator[Line]:
    derived = at(teacher.recipe(teacher=teacher.network), places)
    yield from _students(derived, tuple(ROUNDS))
    yield from _students(at(teacher.recipe(teacher=teacher.network, student=teacher.student), places), tuple(ROUNDS))


def _students(student: Experiment, all_rounds: tuple[int, ...]) -> Iterator[Line]:
    """The student of a pruned teacher after so many rounds, and its controls. A given student's controls stand once,
    but for the longest training of the dense teacher, which depends on the rounds."""
    for rounds in all_rounds:
        method: Any = replace(_method(student), rounds=rounds)
        once = method.student == "given" and rounds != all_rounds[0]
        controls = {source: replace(method, source=source) for source in ("dense", "none", "label_smoothing")}
        if once:
            controls = {}
        controls["longer"] = replace(method, source="dense", longer_teacher=longer(student, rounds))
        first = all_rounds[0] if method.student == "given" else rounds
        dense, own = _label(student, replace(method, rounds=first, source="dense")), _label(student, method)
        yield Line(own, replace(student, method=method), dense)
        for source, control in controls.items():
            # The method is compared with the dense teacher, the other controls with the method.
            yield Line(_label(student, control), replace(student, method=control), own if source != "dense" else None)


def longer(student: Experiment, rounds: int) -> Experiment:
    """The dense teacher, trained for as many epochs as the pruned one: its own and those of every round."""
    method = _method(student)
    teacher, retraining = method.teacher, method.retraining or method.teacher.training
    epochs = teacher.training.epochs + rounds * retraining.epochs
    return replace(teacher, training=replace(teacher.training, epochs=epochs))


def _method(student: Experiment) -> PruneThenDistill:
    assert isinstance(student.method, PruneThenDistill)
    return student.method


def _label(student: Experiment, method: PruneThenDistill) -> str:
    learner = student.model if method.student == "given" else "derived"
    return f"{method.label}, {method.teacher.model} teaches {learner}"
