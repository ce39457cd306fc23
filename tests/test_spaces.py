"""What can be searched: spaces and their texts, checked by hand; and the spaces that every config declares."""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import Console

from compression.config import ADDED, added, searched
from compression.criteria import CRITERIA, ProsPrConfig, SNIPConfig
from compression.methods import (
    EPSD,
    METHODS,
    PDD,
    Dense,
    EarlyPruning,
    IterativeMagnitude,
    Pretrained,
    PruneThenDistill,
)
from compression.objectives import OBJECTIVES, CSKDConfig, KDConfig, PSKDConfig
from compression.spaces import Choices, IntRange, LogRange, Range, Space
from pipelines.data.config import CIFAR10
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, AdamW, MultiStep, TorchOptimizer
from pipelines.recipes import RECIPES
from pipelines.search import spaces

EPSD_SPACES = [
    "method.distillation.temperature",
    "method.distillation.weight",
    "method.sparsity",
    "method.inner_steps",
    "method.inner_lr",
]

OPTIMIZER_SPACES = [f"training.optimizer.{name}" for name in ("lr", "momentum", "weight_decay", "nesterov")]


def value_at(experiment: Any, name: str) -> Any:
    for part in name.split("."):
        experiment = getattr(experiment, part)
    return experiment


# Spaces


@pytest.mark.parametrize(
    ("space", "size", "text", "points"),
    [
        (Range(0.1, 0.5), None, "0.1..0.5", [0.1, 0.2, 0.3, 0.4, 0.5]),
        (Range(1, 20), None, "1..20", [1.0, 5.75, 10.5, 15.25, 20.0]),
        (Range(-1.0, 1.0), None, "-1..1", [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (LogRange(0.01, 100), None, "log(0.01,100)", [0.01, 0.1, 1.0, 10.0, 100.0]),
        (LogRange(1e-5, 0.1), None, "log(1e-05,0.1)", [1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
        (IntRange(1, 3), 3, "1..3", [1, 2, 3]),
        (IntRange(-1, 1), 3, "-1..1", [-1, 0, 1]),
        (Choices((0.8, 0.9, 0.95)), 3, "0.8,0.9,0.95", [0.8, 0.9, 0.95]),
        (Choices((None, 10)), 2, "None,10", [None, 10]),
        (Choices((True, False)), 2, "True,False", [True, False]),
        (Choices(("global",)), 1, "global", ["global"]),
    ],
    ids=str,
)
def test_a_space_by_hand(space: Space, size: int | None, text: str, points: list[Any]):
    assert (space.size, str(space)) == (size, text)
    assert space.grid(5) == points
    assert list(map(type, space.grid(5))) == list(map(type, points))
    assert all(point in space for point in points)


def test_the_ends_of_a_grid_are_exact():
    for space in (Range(1 / 3, 2 / 3), LogRange(1 / 3, 2 / 3), LogRange(1.1e-7, 1 / 3)):
        for num in (2, 3, 7):
            points = space.grid(num)
            assert (len(points), points[0], points[-1]) == (num, space.low, space.high)
            assert points == sorted(set(points))
    for space in (Range(0.0, 1.0), LogRange(0.1, 1.0)):
        with pytest.raises(ValueError, match="take 2 or more values of it, not 1"):
            space.grid(1)


def test_a_huge_range_is_counted_and_drawn_but_not_listed():
    space = IntRange(1, 10**30)
    assert space.size == 10**30
    assert space.sample(random.Random(0)) in space


def test_draws_are_those_of_the_generator_and_fill_the_space():
    for space in (Range(1.0, 3.0), LogRange(0.01, 1.0), IntRange(1, 3), Choices(("a", "b", "c"))):
        draw = random.Random(0)
        found = [space.sample(draw) for _ in range(400)]
        assert all(value in space for value in found)
        again = random.Random(0)
        assert found == [space.sample(again) for _ in range(400)]
        if space.size is not None:
            assert set(found) == set(space.grid(2))
            continue
        middle = 0.1 if isinstance(space, LogRange) else 2.0
        assert 150 < sum(value < middle for value in found) < 250
        assert len(set(found)) == 400


def test_what_lies_in_a_space():
    assert 1 in Range(0.5, 1.0)
    assert [value in Range(0.5, 1.0) for value in (0.4, 1.1, None, True, "1", math.nan)] == [False] * 6
    assert [value in LogRange(0.5, 1.0) for value in (0.5, 1.0, 0.4, None)] == [True, True, False, False]
    assert [value in IntRange(1, 3) for value in (1, 3, 2.0, True, 4)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(20.0, 1.0), "20..1 is reversed: write the smaller number first"),
        (lambda: Range(2.0, 2.0), "2..2 is one value and no range: write 2, or let the second number be larger"),
        (lambda: Range(0.0, math.inf), "0..inf has no end: both must be finite, e.g. 1..20"),
        (lambda: Range(math.nan, 1.0), "nan..1 has no end: both must be finite, e.g. 1..20"),
        (lambda: IntRange(3, 1), "3..1 is reversed: write the smaller number first"),
        (lambda: IntRange(3, 3), "3..3 is one value and no range: write 3, or let the second number be larger"),
        (lambda: IntRange(1, 2.5), "a range of whole numbers cannot end at 2.5: write e.g. 1..20"),  # pyright: ignore[reportArgumentType]
        (lambda: LogRange(0.0, 1.0), "a log range cannot contain 0: let log(0,1) start above it, e.g. at 0.001"),
        (lambda: LogRange(-1.0, 1.0), "a log range cannot contain 0: let log(-1,1) start above it, e.g. at 0.001"),
        (lambda: LogRange(1.0, 0.1), "log(1,0.1) is reversed: write the smaller number first"),
        (lambda: LogRange(0.1, math.inf), "log(0.1,inf) has no end: both must be finite, e.g. 1..20"),
        (lambda: Choices(()), "there are no values to choose from: write e.g. 0.8,0.9,0.95"),
        (lambda: Choices((0.9, 0.8, 0.90)), "0.9,0.8,0.9 has 0.9 twice: write each value once"),
        (lambda: Choices((0.9, math.nan)), "nan is not finite: write numbers like 0.8,0.9,0.95"),
    ],
)
def test_spaces_that_make_no_sense(make: Any, message: str):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_a_default_lies_in_its_space():
    for make in (searched, added):
        assert make(0.9, Choices((0.8, 0.9))).metadata["space"] == Choices((0.8, 0.9))
        with pytest.raises(AssertionError, match=r"the default 0.7 is not in 0.8,0.9"):
            make(0.7, Choices((0.8, 0.9)))
    # The identity of a run depends on this mark alone.
    assert "identity" not in searched(1, IntRange(1, 2)).metadata
    assert added(1, IntRange(1, 2)).metadata["identity"] == added(1).metadata["identity"] == ADDED["identity"]


# Texts of --vary


@pytest.mark.parametrize(
    ("text", "name", "space"),
    [
        ("method.sparsity=0.8,0.9,0.95", "method.sparsity", Choices((0.8, 0.9, 0.95))),
        ("--method.sparsity = 0.8, 0.9", "method.sparsity", Choices((0.8, 0.9))),
        ("method.sparsity=0.5..0.9", "method.sparsity", Range(0.5, 0.9)),
        ("method.sparsity", "method.sparsity", Choices((0.8, 0.9, 0.95, 0.98))),
        ("method.inner-lr", "method.inner_lr", LogRange(0.01, 1.0)),
        ("method.distillation.temperature=1..20", "method.distillation.temperature", Range(1.0, 20.0)),
        ("method.distillation.temperature=4,8", "method.distillation.temperature", Choices((4.0, 8.0))),
        ("training.optimizer.lr=log(0.01,0.5)", "training.optimizer.lr", LogRange(0.01, 0.5)),
        ("training.optimizer.lr=log(1e-3, .5)", "training.optimizer.lr", LogRange(0.001, 0.5)),
        ("method.inner_steps=1..3", "method.inner_steps", IntRange(1, 3)),
        ("training.epochs=5,15", "training.epochs", Choices((5, 15))),
        ("method.scoring_batch_size=None,32", "method.scoring_batch_size", Choices((None, 32))),
        ("method.scoring_batch_size=16..32", "method.scoring_batch_size", IntRange(16, 32)),
        ("training.compile=True,False", "training.compile", Choices((True, False))),
        ("training.precision=float32,float64", "training.precision", Choices(("float32", "float64"))),
        ("model=resnet20,timm/resnet18", "model", Choices(("resnet20", "timm/resnet18"))),
        ("data.augmentation.crop_padding=0..2", "data.augmentation.crop_padding", IntRange(0, 2)),
    ],
)
def test_a_text_by_hand(text: str, name: str, space: Space):
    found = spaces.vary([text], Experiment())
    assert found == {name: space}
    if isinstance(space, Choices):  # 4 == 4.0, but not in an identity
        assert list(map(type, found[name].grid(2))) == list(map(type, space.values))
    # What a space is shown as is a text that means it.
    assert spaces.vary([f"{name}={space}"], Experiment()) == {name: space}


def test_several_texts_keep_their_order():
    found = spaces.vary(["training.epochs=1,2", "method.gate_lr", "method.reduction=0.1..0.5"], Experiment(PDD()))
    assert list(found.items()) == [
        ("training.epochs", Choices((1, 2))),
        ("method.gate_lr", LogRange(0.5, 20.0)),
        ("method.reduction", Range(0.1, 0.5)),
    ]


HOW = "write a list like A,B,C, a range like 1..20 or a log range like log(0.01,0.5)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method.sparsty=0.9", "the experiment has no value 'method.sparsty'; did you mean method.sparsity?"),
        ("temprature=1,2", "the experiment has no value 'temprature'; did you mean method.distillation.temperature?"),
        ("epochs=1,2", "the experiment has no value 'epochs'; did you mean training.epochs?"),
        (
            "zzz=1,2",
            f"the experiment has no value 'zzz'; these have a space: "
            f"{', '.join([*EPSD_SPACES, *OPTIMIZER_SPACES, 'training.decay_vectors'])}",
        ),
        ("=0.9", "'=0.9' names no value: write e.g. method.sparsity=0.8,0.9"),
        *(
            (
                f"{name}=cs_kd,ps_kd",
                f"{name} is no value of the experiment: give it as --{name}; to compare methods, give --methods",
            )
            for name in ("method", "criterion", "distillation")
        ),
        ("optimizer=sgd,adamw", "optimizer is no value of the experiment: give it as --optimizer"),
        (
            "method.distillation=cs_kd",
            "method.distillation is a group of values: vary one of them, e.g. method.distillation.temperature",
        ),
        ("training", "training is a group of values: vary one of them, e.g. training.optimizer.lr"),
        ("seed=0..9", "the seed is no setting to search: --confirm repeats the best over several seeds"),
        ("data.root=a,b", "data.root is a place, which cannot change a result: give it as --data.root"),
        (
            "training.schedule.milestones=0.5",
            "training.schedule.milestones is neither a number nor a word, so no search can vary it: "
            "give it as an option",
        ),
        ("training.epochs", "training.epochs has no space of its own: write its values, e.g. training.epochs=1,2,5"),
        (
            "training.compile",
            "training.compile has no space of its own: write its values, e.g. training.compile=True,False",
        ),
        (
            "training.precision",
            "training.precision has no space of its own: write its values, e.g. "
            "training.precision=auto,float32,bfloat16,float64",
        ),
        ("model", "model has no space of its own: write its values, e.g. model=A,B"),
        ("method.sparsity=", f"method.sparsity: there are no values: {HOW}"),
        ("method.sparsity=0.9,", f"method.sparsity: '0.9,' lacks a value: {HOW}"),
        ("method.sparsity=0.1..0.5..0.9", f"method.sparsity: '0.1..0.5..0.9' is no range: {HOW}"),
        ("method.sparsity=high", "method.sparsity: 'high' is not a number"),
        ("method.sparsity=0.5..high", "method.sparsity: 'high' is not a number"),
        ("method.sparsity=0.5..", "method.sparsity: '' is not a number"),
        ("method.sparsity=0.9..0.5", "method.sparsity: 0.9..0.5 is reversed: write the smaller number first"),
        ("method.sparsity=0.9,0.90", "method.sparsity: 0.9,0.9 has 0.9 twice: write each value once"),
        ("method.sparsity=nan", "method.sparsity: nan is not finite: write numbers like 0.8,0.9,0.95"),
        (
            "training.optimizer.lr=log(0,0.5)",
            "training.optimizer.lr: a log range cannot contain 0: let log(0,0.5) start above it, e.g. at 0.001",
        ),
        (
            "training.optimizer.lr=log(0.1;0.5)",
            "training.optimizer.lr: 'log(0.1;0.5)' is no log range: write it as log(0.01,0.5)",
        ),
        ("training.epochs=1.5,2", "training.epochs: '1.5' is not a whole number"),
        (
            "training.epochs=log(1,100)",
            "training.epochs: 'log(1,100)' would give broken numbers: write whole ones, like 1..20 or 1,10,100",
        ),
        ("training.compile=yes", "training.compile: 'yes' is not True or False"),
        ("training.precision=half", "training.precision: 'half' is not one of auto, float32, bfloat16, float64"),
        ("method.scoring_batch_size=all", "method.scoring_batch_size: 'all' is not a whole number or None"),
        ("model=1..2", "model: '1..2' is a range, but the value is a text: list its values, separated by commas"),
    ],
)
def test_texts_that_mean_nothing(text: str, message: str):
    experiment = Experiment(data=CIFAR10(), training=Training(schedule=MultiStep()))
    if text.startswith("zzz"):
        experiment = Experiment()
    with pytest.raises(ValueError) as error:
        spaces.vary([text], experiment)
    assert str(error.value) == message


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match=r"^method.inner_lr is given twice: give all its values at once$"):
        spaces.vary(["method.inner_lr", "method.inner-lr=0.1,0.2"], Experiment())


# Spaces of an experiment


def test_what_an_experiment_declares():
    assert list(spaces.declared(Experiment())) == [*EPSD_SPACES, *OPTIMIZER_SPACES, "training.decay_vectors"]
    experiment = Experiment(Dense(), training=Training(optimizer=AdamW(), schedule=MultiStep()))
    assert spaces.declared(experiment) == {
        "training.optimizer.lr": LogRange(1e-4, 1e-2),
        "training.optimizer.beta2": Choices((0.95, 0.99, 0.999)),
        "training.optimizer.weight_decay": LogRange(1e-3, 0.3),
        "training.schedule.gamma": Choices((0.1, 0.2)),
        "training.decay_vectors": Choices((True, False)),
    }


def test_teachers_and_their_trainings_are_not_searched():
    """The gates' training is the run's own; the teacher's retraining is not. Neither is a setting of the method."""
    teacher, training = Experiment(Dense(KDConfig())), Training(2)
    pdd = Experiment(PDD(teacher, gating=training))
    names = ["reduction", "budget_weight", "temperature", "alpha", "gate_lr", "distill_finetune"]
    assert list(spaces.own(pdd)) == [f"method.{name}" for name in names]
    assert {name for name in spaces.declared(pdd) if name.startswith("method.gating.")} == {
        *(f"method.gating.optimizer.{name}" for name in ("lr", "momentum", "weight_decay", "nesterov")),
        "method.gating.decay_vectors",
    }
    ptd = Experiment(PruneThenDistill(teacher, retraining=training))
    own = ["method.rounds", "method.temperature", "method.alpha"]
    assert list(spaces.own(ptd)) == own
    assert list(spaces.declared(ptd)) == [*own, *OPTIMIZER_SPACES, "training.decay_vectors"]
    assert list(spaces.own(Experiment(EPSD(KDConfig(teacher))))) == [
        *("method.distillation.temperature", "method.distillation.alpha"),
        *EPSD_SPACES[2:],
    ]


def test_own_spaces_are_the_methods_or_else_the_optimisers():
    assert list(spaces.own(Experiment())) == EPSD_SPACES
    assert list(spaces.own(Experiment(Dense()))) == OPTIMIZER_SPACES
    assert list(spaces.own(Experiment(Dense(CSKDConfig())))) == [
        "method.objective.temperature",
        "method.objective.weight",
    ]
    with pytest.raises(ValueError, match=r"^pretrained trains nothing: give a --method that has settings to search$"):
        spaces.own(Experiment(Pretrained()))


def test_the_experiment_at_a_point():
    before = Experiment(EPSD(scoring_batch_size=8), seed=3)
    point = {"method.sparsity": 0.9, "method.distillation.weight": 2.0, "training.optimizer.lr": 0.2, "model": "vgg11"}
    wanted = Experiment(
        EPSD(CSKDConfig(weight=2.0), 0.9, scoring_batch_size=8), "vgg11", training=Training(optimizer=SGD(0.2)), seed=3
    )
    assert spaces.at(before, point) == wanted
    assert spaces.at(before, {}) == before
    assert before == Experiment(EPSD(scoring_batch_size=8), seed=3)


def test_checks_see_all_values_of_a_point():
    """Each value alone would be refused: chunks need first order, and nesterov needs momentum."""
    for point in (
        {"method.chunk_size": 8, "method.first_order": True},
        {"training.optimizer.nesterov": True, "training.optimizer.momentum": 0.9},
    ):
        before = Experiment(training=Training(optimizer=SGD(momentum=0.0)))
        assert spaces.at(before, point).identity != before.identity
    with pytest.raises(ValueError, match=r"^method.chunk_size=8: chunk_size needs first_order"):
        spaces.at(Experiment(), {"method.chunk_size": 8})


def test_teachers_follow_the_data_and_training_of_a_point():
    """As on the command line: the teacher that is trained like the student stays so; another training stays too."""
    same = Experiment(Dense())
    other = replace(same, training=Training(3))
    point = {"training.epochs": 5, "data.val_fraction": 0.2, "method.rounds": 2}
    for teacher, epochs in ((same, 5), (other, 3)):
        found = spaces.at(Experiment(PruneThenDistill(teacher)), point)
        assert isinstance(found.method, PruneThenDistill)
        assert (found.method.teacher.training.epochs, found.method.teacher.data.val_fraction) == (epochs, 0.2)
        assert (found.training.epochs, found.method.rounds) == (5, 2)


def test_a_point_that_is_refused_is_named():
    with pytest.raises(
        ValueError,
        match=r"^method.sparsity=1.5 training.epochs=2: sparsity is the share of weights removed and must lie",
    ):
        spaces.at(Experiment(), {"method.sparsity": 1.5, "training.epochs": 2})
    with pytest.raises(ValueError, match=r"no value 'method\.share'; "):
        spaces.at(Experiment(), {"method.share": 0.5})


def test_a_grid_by_hand():
    space: Mapping[str, Space] = {"a": Choices(("x", "y")), "b": Range(0.0, 1.0), "c": IntRange(1, 2)}
    assert spaces.num_points(space, 3) == 2 * 3 * 2
    found = list(spaces.grid(space, 3))
    assert found[:4] == [
        {"a": "x", "b": 0.0, "c": 1},
        {"a": "x", "b": 0.0, "c": 2},
        {"a": "x", "b": 0.5, "c": 1},
        {"a": "x", "b": 0.5, "c": 2},
    ]
    assert (len(found), found[-1]) == (12, {"a": "y", "b": 1.0, "c": 2})


def test_a_grid_that_is_too_large_is_refused_before_it_is_built():
    assert len(list(spaces.grid({"a": IntRange(1, 10_000)}, 2))) == 10_000
    with pytest.raises(ValueError, match=r"^a grid of 1,000,000,000,000 points is more than 10,000: vary fewer"):
        spaces.grid({"a": IntRange(1, 10**12)}, 2)


def test_the_table_shows_name_meaning_default_space_and_number():
    console = Console(file=io.StringIO(), width=160)
    experiment = Experiment(EarlyPruning(SNIPConfig()))
    space = spaces.vary(["method.criterion.batches", "method.sparsity=0.5..0.9", "method.rounds=None,2"], experiment)
    console.print(spaces.table(space, experiment))
    assert isinstance(console.file, io.StringIO)
    rows = [re.split("  +", row.strip()) for row in console.file.getvalue().splitlines()]
    # The first is inherited from the config that criteria share.
    assert ["method.criterion.batches", SNIP_BATCHES, "1", "1,2,5,10", "4"] in rows
    assert ["method.sparsity", "share of convolution and linear weights removed", "0.95", "0.5..0.9", "any"] in rows
    assert [row[2:] for row in rows if row[0] == "method.rounds"] == [["None", "None,2", "2"]]


SNIP_BATCHES = "number of training batches over which the gradient is averaged"


# The spaces that configs declare

REGISTERED = {
    **{f"method {name}": Experiment(method()) for name, method in METHODS.items() if method is not Pretrained},
    **{f"criterion {name}": Experiment(EarlyPruning(criterion())) for name, criterion in CRITERIA.items()},
    **{f"objective {name}": Experiment(EPSD(each())) for name, each in OBJECTIVES.items()},
    **{f"dense {name}": Experiment(Dense(each())) for name, each in OBJECTIVES.items()},
    "learning rate rewinding": Experiment(IterativeMagnitude(rewind="learning_rate")),
    "AdamW": Experiment(training=Training(optimizer=AdamW(), schedule=MultiStep())),
    "another optimiser": Experiment(training=Training(optimizer=TorchOptimizer())),
    **{f"recipe {name}": recipe() for name, recipe in RECIPES.items()},
}


@pytest.mark.parametrize("name", REGISTERED)
def test_every_point_of_a_declared_space_is_an_experiment_of_its_own(name: str):
    experiment, draw = REGISTERED[name], random.Random(name)
    space = spaces.declared(experiment)
    own = spaces.own(experiment)
    assert own
    assert own.items() <= space.items()
    for key, each in space.items():
        now = value_at(experiment, key)
        assert now in each, key
        assert {type(value) for value in each.grid(2)} == {type(now)}, key
        assert spaces.vary([f"{key}={each}"], experiment) == {key: each}
    points = {tuple((key, each.sample(draw)) for key, each in space.items()) for _ in range(200)}
    found = {spaces.at(experiment, dict(point)).identity for point in points}
    assert len(found) == len(points) == 200


@pytest.mark.parametrize("kind", [*CRITERIA.values(), *OBJECTIVES.values()])
def test_settings_without_a_space_cannot_improve_a_result(kind: type):
    """Costs, teachers, seeds, and readings of a paper that are there to be compared."""
    known = {"cache", "chunk_size", "half_memory", "first_order", "teacher", "seed", "divergence", "spread"}
    assert {item.name for item in fields(kind()) if "space" not in item.metadata} <= known


def test_papers_values_lie_in_the_spaces():
    """From the reference code: DLB's other weight, CS-KD's on CUB, ProsPr's README, PDD's reductions, PtD's rounds."""
    for experiment, point in (
        (Experiment(EPSD(CSKDConfig())), {"method.distillation.weight": 3.0}),
        (Experiment(EPSD(PSKDConfig())), {"method.distillation.alpha": 0.8, "method.inner_lr": 0.5}),
        (Experiment(EarlyPruning(ProsPrConfig())), {"method.criterion.steps": 0, "method.criterion.lr": 0.5}),
        (Experiment(PDD()), {"method.reduction": 0.3953, "method.temperature": 3.0, "method.alpha": 0.4}),
        (Experiment(PDD()), {"method.reduction": 0.7496, "training.optimizer.weight_decay": 5e-3}),
        (Experiment(PruneThenDistill()), {"method.rounds": 7, "method.temperature": 10.0, "method.alpha": 0.95}),
        (Experiment(IterativeMagnitude()), {"method.rounds": 13, "method.share": 0.2}),
    ):
        space = spaces.declared(experiment)
        assert [name for name, value in point.items() if value not in space[name]] == []
