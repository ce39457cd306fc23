"""EPSD's tables (Chen et al., AAAI 2024, arXiv 2402.00084): pruning at initialisation x self-distillation.

The full text was not available. Networks, schedules and sparsities of its own tables are not known; the suites say of
each value where it comes from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.suites.suite import (
    REDUCED_NOTE,
    REDUCED_SEEDS,
    Line,
    Suite,
    at,
    labelled,
    reduced_name,
    small,
    unique,
)
from compression.methods import EPSD
from pipelines.experiment import Experiment
from pipelines.recipes import cifar10_epsd, cifar100_epsd, cub_epsd, imagenet_epsd, tiny_imagenet_epsd

PAPER = "EPSD (Chen et al., AAAI 2024, arXiv 2402.00084)"

SPARSITIES = (0.36, 0.59, 0.79, 0.9, 0.95)

TABULATED = (*SPARSITIES, 0.8, 0.98, 0.99)
"""Rows of these sparsities are compared with their controls, whichever of them a suite was asked to run."""

SEEDS = (0, 1, 2)

DISTILLATIONS = ("cs_kd", "ps_kd", "dlb")

CRITERIA = ("snip", "grasp", "synflow", "force", "magnitude", "random", "prospr")

NOTES = (
    "EPSD prunes and trains with self-distillation; ProsPr with cross-entropy, trained with self-distillation, is what "
    "the paper calls the simple combination.",
    "Sparsities: 36, 59 and 79 % are found in the code of Prune-then-Distill, to which EPSD compares itself, and "
    "inferred here; 90 and 95 % are chosen here. Benchmarks and distillations (CS-KD, PS-KD, DLB): found. Criteria, "
    "network, schedule, number of inner steps and seeds of the paper's own tables: not found; the recipe's are used.",
)

QUESTION = (
    "Does EPSD beat the simple combination with the same self-distillation, and that early pruning with cross-entropy? "
    "It cannot say whether the paper's own numbers are met: they are not known."
)

Make = Callable[..., Experiment]
"""(method, distillation, criterion) -> an experiment of a recipe, at a suite's places."""


def epsd_cifar10(reduced: bool = False, **places: Any) -> Suite:
    """ResNet-18 (3x3 stem) on CIFAR-10."""
    return _suite(cifar10_epsd, "CIFAR-10", reduced, places)


def epsd_cifar100(reduced: bool = False, **places: Any) -> Suite:
    """ResNet-18 (3x3 stem) on CIFAR-100."""
    return _suite(cifar100_epsd, "CIFAR-100", reduced, places)


def epsd_tiny_imagenet(reduced: bool = False, **places: Any) -> Suite:
    """ResNet-18 (3x3 stem) on Tiny-ImageNet at 64 pixels."""
    return _suite(tiny_imagenet_epsd, "Tiny-ImageNet", reduced, places)


def epsd_imagenet(reduced: bool = False, **places: Any) -> Suite:
    """ResNet-50 on ImageNet, scored to first order."""
    return _suite(imagenet_epsd, "ImageNet", reduced, places)


def epsd_cub(reduced: bool = False, **places: Any) -> Suite:
    """ResNet-18 on CUB-200-2011."""
    return _suite(cub_epsd, "CUB-200-2011", reduced, places)


def epsd_ablations(reduced: bool = False, **places: Any) -> Suite:
    """What of EPSD matters: inner steps, second derivatives, which weights of a layer, and what the masks are for."""
    sparsities, make = _read(cifar10_epsd, reduced, places, (0.9, 0.95))
    return Suite(
        name=reduced_name("epsd_ablations", reduced),
        title=f"What of EPSD matters on {'small images' if reduced else 'CIFAR-10'}",
        paper=PAPER,
        question=(
            "Which parts of EPSD with CS-KD change its accuracy? Shuffled masks keep as many weights in each layer, at "
            "random places. It cannot say so of other networks, data and distillations."
        ),
        lines=tuple(line for sparsity in sparsities for line in _ablations(make, sparsity)),
        seeds=REDUCED_SEEDS if reduced else SEEDS,
        notes=(
            "Inner steps 0, 1 and 5 beside the 3 of ProsPr's code, and all sparsities, are chosen here: the paper's "
            "were not found. Without inner steps and second derivatives the score is SNIP's, of the CS-KD loss.",
            *([REDUCED_NOTE] if reduced else []),
        ),
        recipe="cifar10_epsd",
    )


def _suite(recipe: Make, data: str, reduced: bool, places: Mapping[str, Any]) -> Suite:
    sparsities, make = _read(recipe, reduced, places, SPARSITIES)
    where = f"small images, with the methods for {data}" if reduced else data
    return Suite(
        name=reduced_name(f"epsd_{recipe.__name__.removesuffix('_epsd')}", reduced),
        title=f"Early pruning and self-distillation on {where}",
        paper=PAPER,
        question=QUESTION,
        lines=unique([*_dense(make), *(line for sparsity in sparsities for line in _pruned(make, sparsity))]),
        seeds=REDUCED_SEEDS if reduced else SEEDS,
        notes=(*NOTES, REDUCED_NOTE) if reduced else NOTES,
        recipe=recipe.__name__,
    )


def _read(
    recipe: Make, reduced: bool, places: Mapping[str, Any], usual: Sequence[float]
) -> tuple[Sequence[float], Make]:
    """The sparsities, and the recipe at these places; reduced: its methods on the small setting."""
    places = dict(places)
    sparsities = places.pop("sparsities", usual[-2:-1] if reduced else usual)
    setting = small(places) if reduced else None

    def make(method: str, distillation: str | None = None, criterion: str | None = None) -> Experiment:
        made = recipe(method=method, distillation=distillation, criterion=criterion)
        if distillation in DISTILLATIONS:
            # As the recipe has it for EPSD: CUB's weighs CS-KD by 3 there only.
            own: Any = made.method
            of_epsd = recipe(method="epsd", distillation=distillation).method.objective
            made = replace(made, method=replace(own, **{own.options["distillation"]: of_epsd}))
        if setting is None:
            return at(made, places)
        return replace(setting, method=made.method)

    return sparsities, make


def _dense(make: Make) -> Iterator[Line]:
    dense = make("dense")
    yield Line(labelled(dense), dense)
    for distillation in DISTILLATIONS:
        each = make("dense", distillation)
        yield Line(labelled(each), each, labelled(dense))


def _pruned(make: Make, sparsity: float) -> Iterator[Line]:
    """Each criterion by cross-entropy, against random; with each distillation, against that; EPSD, against ProsPr's."""
    random = _line(make("early_pruning", "cross_entropy", "random"), sparsity)
    for criterion in CRITERIA:
        control = labelled(make("dense")) if criterion == "random" else random.label
        plain = _line(make("early_pruning", "cross_entropy", criterion), sparsity, control)
        yield plain
        for distillation in DISTILLATIONS:
            yield _line(make("early_pruning", distillation, criterion), sparsity, plain.label)
    for distillation in DISTILLATIONS:
        simple = _line(make("early_pruning", distillation, "prospr"), sparsity)
        yield _line(make("epsd", distillation), sparsity, simple.label)


def _ablations(make: Make, sparsity: float) -> Iterator[Line]:
    plain = _line(make("early_pruning", "cross_entropy", "prospr"), sparsity)
    yield plain
    simple = _line(make("early_pruning", "cs_kd", "prospr"), sparsity, plain.label)
    yield simple
    own = _line(make("epsd", "cs_kd"), sparsity, simple.label)
    yield own
    for steps in (0, 1, 5):
        yield _changed(own, inner_steps=steps)
    yield _changed(own, first_order=True)
    yield _changed(own, shuffle=True)
    yield replace(_changed(own, trained_by="cross_entropy"), control=plain.label)


def _line(experiment: Experiment, sparsity: float, control: str | None = None) -> Line:
    method: Any = experiment.method
    pruned = replace(experiment, method=replace(method, sparsity=sparsity))
    return Line(labelled(pruned), pruned, control)


def _changed(own: Line, **values: Any) -> Line:
    """EPSD with other values, compared with EPSD itself."""
    method = own.experiment.method
    assert isinstance(method, EPSD)
    changed = replace(own.experiment, method=replace(method, **values))
    return Line(labelled(changed), changed, own.label)
