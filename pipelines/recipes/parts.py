"""What a person can choose by name in recipes: the types of their parameters, and what is built from the names.

The help of an option lists the names of its registry.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any

from tyro.conf import arg

from compression.choose import choose
from compression.criteria import CRITERIA, ProsPrConfig
from compression.methods import EPSD, METHODS, PDD, Dense, EarlyPruning, MethodConfig, PruneThenDistill
from compression.objectives import OBJECTIVES
from compression.objectives.config import TeacherObjectiveConfig
from pipelines.experiment import Experiment
from pipelines.optimizers import OFFERED, SGD, AdamW, TorchOptimizer

Recipe = Callable[..., Experiment]

METHODS_WITH_TEACHER = [name for name, config in METHODS.items() if issubclass(config, (PDD, PruneThenDistill))]

WITH_TEACHER = [name for name, config in OBJECTIVES.items() if issubclass(config, TeacherObjectiveConfig)]


def _help(text: str, names: Iterable[str], default: str = "") -> Any:
    return arg(help=f"{text}: {', '.join(names)}{default}")


def _methods_with(option: str) -> str:
    return ", ".join(name for name, config in METHODS.items() if option in config.options)


USUAL = "; None: the method's usual one"

Method = Annotated[str, _help("how the network is compressed", METHODS)]
Distillation = Annotated[
    str | None, _help(f"training objective (in {_methods_with('distillation')})", OBJECTIVES, USUAL)
]
Criterion = Annotated[str | None, _help(f"score of a weight (in {_methods_with('criterion')})", CRITERIA, USUAL)]
ObjectiveTeacher = Annotated[
    str | None,
    _help(
        "network of the teacher, trained like the student, of these objectives and methods",
        (*WITH_TEACHER, *METHODS_WITH_TEACHER),
    ),
]
Teacher = Annotated[str | None, arg(help="network of the teacher; None: the recipe's own")]
Student = Annotated[str | None, arg(help="network of the student; None: the recipe's own")]
Optimizer = Annotated[str, arg(help="sgd, adamw or another class of torch.optim")]
Smoke = Annotated[bool, arg(help="run the whole path on digits, in a minute")]


def options_of(shared: Recipe) -> Callable[[Recipe], Recipe]:
    """Gives a recipe the options of the function `shared`, apart from those that it has itself."""

    def decorated(recipe: Recipe) -> Recipe:
        own = inspect.signature(recipe).parameters
        found = inspect.signature(shared).parameters.items()
        options = [own.get(name, each) for name, each in found if each.default is not each.empty]
        recipe.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
        return recipe

    return decorated


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


def first_order(method: MethodConfig, chunk_size: int | None) -> MethodConfig:
    """The method; if it scores by a meta-gradient, without its second derivatives, which would not fit into a GPU."""
    if isinstance(method, EarlyPruning) and isinstance(method.criterion, ProsPrConfig):
        return replace(method, criterion=replace(method.criterion, first_order=True, chunk_size=chunk_size))
    if isinstance(method, EPSD):
        return replace(method, first_order=True, chunk_size=chunk_size)
    return method


def with_teacher(experiment: Experiment, teacher: str | None) -> Experiment:
    """The experiment; its method's or objective's teacher is the network `teacher`, trained densely in the same way."""
    if teacher is None:
        return experiment
    method: Any = experiment.method
    teaching = replace(experiment, method=Dense(), model=teacher)
    if isinstance(method, PruneThenDistill) and teacher != experiment.model:
        method = replace(method, student="given")  # the teacher's pruning implies no widths of another network
    if isinstance(method, (PDD, PruneThenDistill)):
        return replace(experiment, method=replace(method, teacher=teaching))
    if "distillation" not in method.options or not isinstance(method.objective, TeacherObjectiveConfig):
        raise ValueError(
            "--teacher needs an objective or a method with a teacher: set --distillation to "
            f"{' or '.join(WITH_TEACHER)}, or --method to {' or '.join(METHODS_WITH_TEACHER)}"
        )
    objective = replace(method.objective, teacher=teaching)
    return replace(experiment, method=replace(method, **{method.options["distillation"]: objective}))


def build_optimizer(name: str, sgd: SGD) -> SGD | AdamW | TorchOptimizer:
    """The recipe's own SGD, or another optimiser with its defaults."""
    others = {name.lower(): TorchOptimizer(name) for name in OFFERED}
    return choose("optimizer", name.lower(), {**others, "sgd": sgd, "adamw": AdamW()})
