"""The options of `pipelines/sweep.py`, and the searches that they ask for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from compression.choose import choose
from compression.methods import name_of
from compression.spaces import Choices
from pipelines import cli
from pipelines.experiment import Experiment
from pipelines.recipes import RECIPES
from pipelines.search import spaces
from pipelines.search.plan import Limits, Plan
from pipelines.search.samplers import PER_RANGE, SAMPLERS
from pipelines.search.trial import COSTS, Goal

SCHEDULERS = {"asha": True, "none": False}

DESCRIPTION = """Search the settings of a recipe with Ray Tune: which temperature, which weight, how sparse?

    python pipelines/sweep.py digits_epsd --trials 20
    python pipelines/sweep.py cifar10_epsd --vary method.distillation.temperature=1..20 --vary method.inner_steps=1,3,5
    python pipelines/sweep.py cifar10_epsd --objective accuracy,effective_macs --trials 60 --search optuna
    python pipelines/sweep.py cifar10_epsd --methods epsd,early_pruning --method.sparsity 0.95 --confirm 1 2 3
    ray job submit --working-dir . -- python pipelines/sweep.py imagenet_epsd --trials 64 --storage /shared/orchard

Every trial is a run as by hand: in the same storage, resumable, and free if it is there already. Settings are chosen on
the validation split. The same command goes on with a sweep that was killed; with more --trials it is extended.
Other options are the recipe's own and fix a value for all trials: python pipelines/run.py RECIPE --help"""


@dataclass(frozen=True)
class Sweep:
    """One search: its recipe's command, and what varies. dry: the words by which benchmarks/plan.py plans a trial."""

    method: str
    command: cli.Command
    plan: Plan
    fixed: Sequence[str]
    words: Sequence[str]


def parser() -> argparse.ArgumentParser:
    """The options of a sweep; what it does not know is the recipe's."""
    names = "\n".join(f"  {name}" for name in RECIPES)
    made = argparse.ArgumentParser(
        "pipelines/sweep.py",
        usage="pipelines/sweep.py RECIPE [OPTIONS]",
        description=DESCRIPTION,
        epilog=f"recipes:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("recipe", metavar="RECIPE", help="what is searched, see below")
    made.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=SPACE",
        help="a value to search, as 0.8,0.9,0.95 or 1..20 or log(0.01,0.5), or NAME alone for its usual space; "
        "repeatable; without it: the settings of the method and its distillation",
    )
    made.add_argument("--trials", type=int, default=20, metavar="N", help="number of trials (20)")
    made.add_argument("--search", default="optuna", metavar="NAME", help=f"{', '.join(SAMPLERS)} (optuna)")
    made.add_argument(
        "--scheduler",
        metavar="NAME",
        help="asha: stop trials that are not in the best third after 1, 3, 9... epochs; none: train all to their end "
        "(asha; none with a cost)",
    )
    costs = "; ".join(f"{name}: {cost.meaning}" for name, cost in COSTS.items())
    made.add_argument(
        "--objective",
        default="accuracy",
        metavar="accuracy[,COST]",
        help=f"highest validation accuracy; with a COST a Pareto front. {costs}",
    )
    made.add_argument("--methods", metavar="A,B...", help="search each of these methods, with the same budget")
    made.add_argument(
        "--max-dense-epochs", type=float, metavar="B", help="cost limit for each method, in epochs of dense training"
    )
    made.add_argument("--parallel", type=int, metavar="N", help="trials at a time; without it: as many as fit")
    made.add_argument("--gpus-per-trial", type=float, metavar="G", help="GPUs of a trial of one worker, e.g. 0.25 (1)")
    made.add_argument("--confirm", type=int, nargs="+", default=[], metavar="SEED", help="then run the best with these")
    made.add_argument("--confirm-front", action="store_true", help="confirm the whole Pareto front")
    made.add_argument("--dry-run", action="store_true", help="show the space and the cost of the trials; run nothing")
    return made


def sweeps(options: argparse.Namespace, rest: Sequence[str]) -> list[Sweep]:
    """A search for each method. ValueError, before anything runs, for what is impossible.

    rest: the words of the recipe's own options.
    """
    recipe = choose("recipe", options.recipe, RECIPES)
    _check(options, rest)
    methods: list[str | None] = [*options.methods.split(",")] if options.methods else [None]
    if "" in methods:
        raise ValueError(f"--methods {options.methods} has an empty name: give names with a comma between two")
    if len(set(methods)) < len(methods):
        raise ValueError(f"--methods {options.methods} names a method twice: give each once")
    found = []
    for method in methods:
        words = [*rest, *(["--method", method] if method else [])]
        command = cli.parse(recipe, words, f"pipelines/sweep.py {options.recipe}")
        if command.seeds:
            raise ValueError("a sweep has one seed: give --seed, and --confirm to repeat the best over other seeds")
        found.append(_sweep(options, command, words))
    return found


def limits(options: argparse.Namespace) -> Limits:
    return Limits(options.trials, options.max_dense_epochs)


def _check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """ValueError for options of the sweep itself."""
    choose("search", options.search, SAMPLERS)
    if options.scheduler:
        choose("scheduler", options.scheduler, SCHEDULERS)
    for name in ("trials", "parallel", "gpus_per_trial", "max_dense_epochs"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    if options.confirm_front and not options.confirm:
        raise ValueError("--confirm-front needs seeds: give --confirm SEED SEED...")
    if len(set(options.confirm)) < len(options.confirm):
        raise ValueError(f"--confirm {' '.join(map(str, options.confirm))} names a seed twice: give each once")
    named = {word.partition("=")[0] for word in rest}
    if options.methods and "--method" in named:
        raise ValueError("--method and --methods exclude each other: give all methods to --methods")
    if "--launcher" in named:
        raise ValueError("leave out --launcher: a sweep runs on Ray, on this machine or on the cluster at RAY_ADDRESS")


def _sweep(options: argparse.Namespace, command: cli.Command, words: Sequence[str]) -> Sweep:
    experiment, goal = command.experiment, _goal(options)
    if not getattr(experiment.data, "val_fraction", 0.0):
        raise ValueError("a sweep chooses on the validation split, which is empty: set --data.val-fraction, e.g. 0.1")
    if options.gpus_per_trial is not None and (command.placement.workers or 1) > 1:
        raise ValueError(
            "--gpus-per-trial is for trials of one worker: with --workers each worker has a GPU of its own"
        )
    if experiment.seed in options.confirm:
        raise ValueError(f"--confirm {experiment.seed} is the seed of the search itself: confirm with other seeds")
    space = spaces.vary(options.vary, experiment) if options.vary else spaces.own(experiment)
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word[:2] == "--"}
    fixed = [name for name in space if name in given or _negated(name) in given]
    if options.vary and fixed:
        raise ValueError(f"{fixed[0]} is given as an option and in --vary: leave one of them out")
    if not options.vary:
        space = {name: each for name, each in space.items() if name not in fixed}
        if not space:
            raise ValueError(
                f"every setting of {experiment.method.label} is given: leave one out, or name it in --vary"
            )
    _check_ends(experiment, space)
    if options.search == "grid":
        spaces.grid(space, PER_RANGE)  # an error if it is too large
    plan = Plan(experiment, space, options.search, _scheduler(options, goal), goal)
    return Sweep(name_of(experiment.method), command, plan, fixed, words)


def _negated(name: str) -> str:
    """The option that switches a value off: method.no_first_order."""
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}no_{last}"


def _check_ends(experiment: Experiment, space: dict[str, spaces.Space]) -> None:
    """ValueError for a value that cannot be an experiment's: each choice, and both ends of each range."""
    for name, each in space.items():
        for value in each.values if isinstance(each, Choices) else (each.low, each.high):
            spaces.at(experiment, {name: value})


def _goal(options: argparse.Namespace) -> Goal:
    accuracy, *cost = options.objective.split(",")
    if accuracy != "accuracy" or len(cost) > 1:
        raise ValueError(
            f"--objective {options.objective}: give accuracy, or accuracy,COST with one of {', '.join(COSTS)}"
        )
    if cost:
        choose("cost", cost[0], COSTS)
    return Goal(*cost)


def _scheduler(options: argparse.Namespace, goal: Goal) -> str:
    if goal.cost is None:
        return options.scheduler or "asha"
    if options.scheduler == "asha":
        raise ValueError("asha compares accuracies alone and would stop the cheap trials: use --scheduler none")
    return "none"
