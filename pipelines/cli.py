"""The command line of a recipe: main(recipe) parses the options, shows the experiment, runs it and reports the result.

The options are the recipe's own parameters and every value of the experiment that it returns.
"""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from cluster.checkpoints import open_storage
from pipelines.announcement import short_help, show
from pipelines.driver import Ended, run_experiments
from pipelines.experiment import Experiment, Placement, parameters
from pipelines.progress import complain, refusing, say
from pipelines.search.settings import apply, read_settings
from pipelines.teachers import with_followers

Recipe = Callable[..., Experiment]
"""Its parameters are options, except `scratch`: the folder into which its smoke run writes."""

RENAMED = {"--alone": "--no-controls", "--no-alone": "--controls", "--patience": "--timeout"}
"""Old option -> new option. For one version the old option works, with a warning."""

HELP = ("-h", "--help", "--help-all")

CONFIG = (tyro.conf.AvoidSubcommands,)
"""How tyro makes options of an experiment."""

SettingsFile = Annotated[
    str | None,
    tyro.conf.arg(
        name="from",
        metavar="FILE",
        help="best.toml of a sweep: its values become defaults; other options override them",
    ),
]


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    recipe: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]
    """the recipe's parameters, as a dataclass"""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    placement: Annotated[Placement, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]
    suite: str
    """MLflow experiment in which the run is tracked"""
    controls: bool = True
    """also run what the method's claim must be compared with, e.g. the student without its teacher"""
    seeds: tuple[int, ...] = ()
    """several seeds in one command, in place of --seed: all runs once for each"""
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """first show every value of every run"""
    settings: SettingsFile = None

    def experiments(self) -> list[Experiment]:
        """All runs of the command, seed by seed; teachers run when they are needed."""
        of_seeds = [replace(self.experiment, seed=seed) for seed in self.seeds] or [self.experiment]
        return [each for main in of_seeds for each in (main, *(controls(main) if self.controls else []))]


@dataclass(frozen=True)
class _First:
    """The options on which the other options depend."""

    recipe: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]
    storage: str = Placement.storage
    settings: SettingsFile = None


@refusing(ValueError, OSError)
def main(recipe: Recipe, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the recipe with the options of the command line. program: its name in the help.

    Returns the exit status: 0 = finished, 1 = the run failed, 2 = the command is wrong, 130 = stopped by Ctrl-C.
    After SIGTERM the process exits with 143.
    """
    console = Console()
    try:
        argv = sys.argv[1:] if argv is None else argv
        command = parse(recipe, argv, program)
        experiments = command.experiments()
        show(experiments, argv, command.verbose, console)
        ended = run_experiments(experiments, command.placement, command.suite, recipe.__name__, console)
    except KeyboardInterrupt:
        complain("stopped; start the same command again to resume from the last checkpoint")
        return 130
    return report(ended, console)


def parse(recipe: Recipe, argv: Sequence[str], program: str | None = None) -> Command:
    """The command line, over the recipe's values and those of --from. ValueError for an impossible value."""
    argv = renamed(argv)
    words = [word for word in argv if word not in HELP]
    own = options_of(recipe)
    first, _ = _parse(recipe, _First(own()), words, program, return_unknown_args=True)
    chosen = asdict(first.recipe)
    if chosen.get("smoke"):  # only a smoke run may write before it starts
        storage = open_storage(first.storage)
        argv = [*argv, "--storage", str(storage)]
        if "scratch" in inspect.signature(recipe).parameters:
            chosen["scratch"] = storage / "smoke"
    own_values = experiment = recipe(**chosen)
    if first.settings is not None:
        experiment = apply(read_settings(Path(first.settings)), experiment, Path(first.settings))
    default = Command(own(), experiment, Placement(), suite=experiment.data.label, controls=not chosen.get("smoke"))
    if {"-h", "--help"} & set(argv):
        names = [item.name for item in fields(own)]
        print(short_help(recipe, names, default, CONFIG, program or sys.argv[0]))
        raise SystemExit(0)
    argv = ["--help" if word == "--help-all" else word for word in argv]
    command = _parse(recipe, default, argv, program)
    command = replace(command, experiment=with_followers(command.experiment, experiment))
    for text in kept_trainings(command.experiment, own_values):
        complain(text, "yellow")
    for name, value in parameters(command.experiment):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
    if command.seeds:
        if any(word.partition("=")[0] == "--seed" for word in argv):
            raise ValueError("--seed and --seeds exclude each other: give all seeds to --seeds")
        if len({each.identity for each in command.experiments()}) < len(command.experiments()):
            raise ValueError(f"--seeds {' '.join(map(str, command.seeds))} names a seed twice: give each once")
    return command


def options_of(recipe: Recipe) -> type:
    """A dataclass of the recipe's parameters that are options."""
    found = inspect.signature(recipe, eval_str=True).parameters.values()
    options = [(each.name, each.annotation, each.default) for each in found if each.name != "scratch"]
    return make_dataclass(recipe.__name__, options, frozen=True)


def renamed(argv: Sequence[str]) -> list[str]:
    """The words with the new names of options, and a warning for each old name."""
    words = []
    for word in argv:
        option, *value = word.split("=", 1)
        if option in RENAMED:
            complain(f"warning: {option} is now {RENAMED[option]}; the old name works in this version only", "yellow")
        words.append("=".join([RENAMED.get(option, option), *value]))
    return words


def _parse(recipe: Recipe, default: Any, argv: Sequence[str], program: str | None, **others: Any) -> Any:
    """argv over `default`; a wrong option ends the process with status 2."""
    description = "\n".join(line.removeprefix("    ") for line in (recipe.__doc__ or "").splitlines())
    try:
        return tyro.cli(
            type(default), default=default, args=argv, prog=program, description=description, config=CONFIG, **others
        )
    except SystemExit as stop:
        if stop.code == 2:
            own = ", ".join(f"--{item.name}" for item in fields(options_of(recipe)))
            complain(f"{recipe.__name__}'s own options are {own}; --help-all has all options")
        raise


def controls(experiment: Experiment) -> list[Experiment]:
    """The same experiment with each method that its own must be compared with."""
    return [replace(experiment, method=method) for method in experiment.method.controls()]


def kept_trainings(experiment: Experiment, before: Experiment) -> list[str]:
    """What to say of teachers whose own training an option for the student's has not changed."""
    named = [name for name, value in parameters(experiment.method, "method.") if value == "Experiment"]
    if experiment.training == before.training:
        return []
    teachers = [(name, attrgetter(name)(experiment), attrgetter(name)(before)) for name in named]
    return [
        f"the teacher keeps its own training ({now.training.epochs} epochs): options of --training are the student's, "
        f"--{name}.training.epochs and the like are the teacher's"
        for name, now, then in teachers
        if now.training == then.training
    ]


def report(ended: Sequence[Ended], console: Console) -> int:
    """Print where everything is, and each error once; the exit status."""
    failed: dict[str | None, list[Ended]] = {}
    for end in ended:
        if end.error is not None or end.result is None:
            failed.setdefault(end.error, []).append(end)
            continue
        accuracy = end.result["metrics"]["test/accuracy"]
        tracked = (
            end.run_id or "none yet: MLflow is not there; start the same command again where it is, to send the run"
        )
        text = f"{end.experiment.name}: test accuracy {accuracy:.2%}\n  network: {end.folder}\n  MLflow run: {tracked}"
        say(console, f"{text}\n  {end.page}" if end.page else text)
    for error, ends in failed.items():
        trace = ends[0].folder / "error.txt"
        lines = [f"failed: {ends[0].experiment.name}: {error}"]
        lines += [f"  the same error: {end.experiment.name}" for end in ends[1:]]
        complain("\n".join([*lines, f"  traceback: {trace}"] if trace.exists() else lines))
    return 1 if failed else 0
