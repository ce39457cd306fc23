"""What a person can choose by name in recipes: the types of their parameters, and what is built from the names.

The help of an option lists the names of its registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

from tyro.conf import arg

from compression.choose import choose
from compression.criteria import CRITERIA
from compression.methods import METHODS, Dense, MethodConfig
from compression.objectives import OBJECTIVES
from compression.objectives.base import TeacherObjectiveConfig
from pipelines.experiment import Experiment
from pipelines.optimizers import OFFERED, SGD, AdamW, TorchOptimizer


def _methods_with(option: str) -> str:
    return _words(name for name, config in METHODS.items() if option in config.options)


def _words(names: Iterable[str]) -> str:
    return ", ".join(names)


WITH_TEACHER = _words(name for name, config in OBJECTIVES.items() if issubclass(config, TeacherObjectiveConfig))

Method = Annotated[str, arg(help=f"how the network is compressed: {_words(METHODS)}")]
Distillation = Annotated[
    str | None,
    arg(
        help=f"objective of the training, for the methods {_methods_with('distillation')}: {_words(OBJECTIVES)}; "
        "None: the method's usual one"
    ),
]
Criterion = Annotated[
    str | None,
    arg(
        help=f"what scores the weights, for the method {_methods_with('criterion')}: {_words(CRITERIA)}; "
        "None: the method's usual one"
    ),
]
ObjectiveTeacher = Annotated[
    str | None,
    arg(
        help=f"network of the teacher, for the objectives {WITH_TEACHER}: it is trained in the same way as the "
        "student; None: the student's own network"
    ),
]
Teacher = Annotated[str | None, arg(help="network of the teacher; None: the recipe's own")]
Student = Annotated[str | None, arg(help="network of the student; None: the recipe's own")]
Optimizer = Annotated[str, arg(help="sgd, adamw or another class of torch.optim")]
Smoke = Annotated[bool, arg(help="run the whole path on real digits in less than a minute, without network access")]


def build_method(
    name: str, sparsity: float, distillation: str | None = None, criterion: str | None = None
) -> MethodConfig:
    """The config of a method, with this sparsity if it prunes weights. ValueError for an option that it lacks."""
    method, values = choose("method", name, METHODS), {}
    registries: dict[str, dict[str, type]] = {"distillation": OBJECTIVES, "criterion": CRITERIA}
    for option, value in {"distillation": distillation, "criterion": criterion}.items():
        if value is None:
            continue
        if option not in method.options:
            raise ValueError(f"method {name} has no --{option}; these methods have it: {_methods_with(option)}")
        values[method.options[option]] = choose(option, value, registries[option])()
    return method.at(sparsity, **values)


def with_teacher(experiment: Experiment, teacher: str | None) -> Experiment:
    """The experiment; its objective's teacher is the network `teacher`, trained densely in the same way."""
    if teacher is None:
        return experiment
    method: Any = experiment.method
    if "distillation" not in method.options or not isinstance(method.objective, TeacherObjectiveConfig):
        raise ValueError(f"--teacher needs an objective with a teacher: set --distillation to {WITH_TEACHER}")
    objective = replace(method.objective, teacher=replace(experiment, method=Dense(), model=teacher))
    return replace(experiment, method=replace(method, **{method.options["distillation"]: objective}))


def build_optimizer(name: str, sgd: SGD) -> SGD | AdamW | TorchOptimizer:
    """The recipe's own SGD, or another optimiser with its defaults."""
    others = {name.lower(): TorchOptimizer(name) for name in OFFERED}
    return choose("optimizer", name.lower(), {**others, "sgd": sgd, "adamw": AdamW()})
