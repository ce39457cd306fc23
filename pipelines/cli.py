"""main(recipe): parse, show, launch, report. Every entry script is a recipe and this."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from cluster.checkpoints import open_storage
from pipelines.data.config import Data
from pipelines.driver import Ended, run_experiments
from pipelines.experiment import Experiment, Placement, parameters
from pipelines.recipes.parts import Choices

Recipe = Callable[[Choices, Path], Experiment]


@dataclass(frozen=True)
class Command:
    """What a command line says."""

    choices: Annotated[Choices, tyro.conf.arg(name="")]
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    placement: Annotated[Placement, tyro.conf.arg(name="")]
    suite: str
    """MLflow experiment under which the run is tracked"""
    alone: bool = False
    """leave out the runs that a method's claim is compared with (the same student without its teacher, say)"""


@dataclass(frozen=True)
class _First:
    """The options that decide which other options there are."""

    choices: Annotated[Choices, tyro.conf.arg(name="")]
    storage: str = Placement.storage


RENAMED = {"--patience": "--timeout"}
"""Old names of options, which work in this version, with a warning."""

OPTIONS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)


def main(recipe: Recipe, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the recipe as the command line changes it.

    0 = finished, 1 = the run failed, 2 = the command is wrong, 130 = stopped by Ctrl-C; by SIGTERM it exits with 143.
    program: its name in the help.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        command = parse(recipe, argv, program)
        show(command, console)
        experiments = [command.experiment, *([] if command.alone else controls(command.experiment))]
        ended = run_experiments(experiments, command.placement, command.suite, recipe.__name__, console)
    except BrokenPipeError:  # whoever read our output has enough: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("stopped; start the same command again, and the run goes on from its last checkpoint")
        return 130
    return report(ended, console)


def parse(recipe: Recipe, argv: Sequence[str], program: str | None = None) -> Command:
    """The command line over the recipe's values. ValueError for a value that cannot be."""
    argv = renamed(argv)
    without_help = [word for word in argv if word not in ("-h", "--help")]
    first, _ = tyro.cli(
        _First, default=_First(Choices()), args=without_help, prog=program, return_unknown_args=True, config=OPTIONS
    )
    scratch = Path()
    if first.choices.smoke:  # only that may write before it starts; nobody comes back for it, wherever it lies
        storage = open_storage(first.storage)
        scratch, argv = storage / "smoke", [*argv, "--storage", str(storage)]
    experiment = recipe(first.choices, scratch)
    default = Command(Choices(), experiment, Placement(), suite=experiment.data.label, alone=first.choices.smoke)
    description = "\n".join(line.removeprefix("    ") for line in (recipe.__doc__ or "").splitlines())
    command = tyro.cli(Command, default=default, args=argv, prog=program, description=description, config=OPTIONS)
    command = replace(command, experiment=following(command.experiment, experiment.data))
    for name, value in parameters(command.experiment):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
    return command


def renamed(argv: Sequence[str]) -> list[str]:
    """The words with the new names of options, and a warning for each old name."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        if option in RENAMED:
            complain(f"warning: {option} is now {RENAMED[option]}; the old name works in this version only")
        words.append(RENAMED.get(option, option) + equals + value)
    return words


def controls(experiment: Experiment) -> list[Experiment]:
    """The same experiment by each method that has to stand beside its own."""
    beside = getattr(experiment.method, "controls", list)
    return [replace(experiment, method=method) for method in beside()]


def following(experiment: Experiment, before: Data) -> Experiment:
    """The experiment, its teachers on its own data where those were the recipe's, too, before options changed them."""

    def changed(value: Any) -> Any:
        if isinstance(value, Experiment) and value.data == before:
            value = replace(value, data=experiment.data)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        parts = {item.name: getattr(value, item.name) for item in fields(value)}
        new = {name: changed(part) for name, part in parts.items()}
        return replace(value, **new) if any(new[name] is not parts[name] for name in parts) else value

    return replace(experiment, method=changed(experiment.method))


def complain(text: str) -> None:
    """A line in red on standard error."""
    Console(stderr=True).print(text, style="red", soft_wrap=True, highlight=False, markup=False)


def show(command: Command, console: Console) -> None:
    """The whole experiment, before it starts."""
    lines = [f"{command.experiment.name}   (identity {command.experiment.identity})"]
    for name, value in parameters(command.experiment):
        lines.append(f"  {name} = {value}")
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def report(ended: Sequence[Ended], console: Console) -> int:
    """Say where everything is; the exit status."""
    for end in ended:
        if end.error is not None or end.result is None:
            trace = end.folder / "error.txt"
            complain(
                f"failed: {end.experiment.name}: {end.error}" + (f"\n  traceback: {trace}" if trace.exists() else "")
            )
            continue
        accuracy = end.result["metrics"]["test/accuracy"]
        tracked = end.run_id or "none yet: the server was away; start the same command again, and it is sent"
        text = f"{end.experiment.name}: test accuracy {accuracy:.2%}\n  network: {end.folder}\n  MLflow run: {tracked}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    return 1 if any(end.error is not None or end.result is None for end in ended) else 0
