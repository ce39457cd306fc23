"""What a command shows before it starts: all its runs in a few lines, or every value of each; and its short help."""

import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from rich.console import Console

from pipelines import precision
from pipelines.experiment import Experiment, Training, parameters
from pipelines.progress import say
from pipelines.teachers import needed

FIRST = (
    *("model", "method.sparsity", "method.rounds", "method.reduction", "seed", "seeds"),
    *("data.root", "data.name", "data.image-size"),
    *("training.epochs", "training.batch-size", "training.optimizer.lr", "training.precision"),
    *("workers", "launcher", "parallel", "storage", "controls", "from", "verbose"),
)
"""Options of the short help, beside the recipe's own."""

WIDTH = 80
"""Of the short help, in characters."""


def show(experiments: Sequence[Experiment], argv: Sequence[str], verbose: bool, console: Console) -> None:
    """Print every run of a command: first the teachers, then the runs, those that differ in their seed in one line.

    argv: the command's words; what "auto" stands for is said. verbose: every value of each run.
    """
    if "precision=auto=" in f"{'='.join(argv)}=":
        say(console, "precision auto is {}: {}".format(*precision.best()))
    own = {each.identity for each in experiments}
    teachers = {each.identity: each for run in experiments for each in needed(run) if each.identity not in own}
    if verbose:
        for each in (*teachers.values(), *experiments):
            values = "".join(f"\n  {name} = {value}" for name, value in parameters(each))
            say(console, f"{each.name}   (identity {each.identity}){values}")
        return
    groups: dict[str, list[Experiment]] = {}
    for each in (*teachers.values(), *experiments):
        kind = "  teacher: " if each.identity in teachers else "  "
        groups.setdefault(kind + each.name.removesuffix(f", seed {each.seed}"), []).append(each)
    count = f"{len(experiments)} run{'s' * (len(experiments) > 1)}"
    also = f" and {len(teachers)} for teachers" if teachers else ""
    lines, before = [f"{count}{also} (--verbose: every value)"], ""
    for text, group in groups.items():
        seeds = f"seed{'s' * (len(group) > 1)} {' '.join(str(each.seed) for each in group)}"
        identity = f"   (identity {group[0].identity})" if len(group) == 1 else ""
        trained = " + ".join(map(_in_short, group[0].method.trainings(group[0].training)))
        lines.append(f"{text}, {seeds}{identity}" + (f": {trained}" if trained != before else ""))
        before = trained
    method = experiments[0].method
    for scored, option in ((method, "method"), (getattr(method, "criterion", None), "method.criterion")):
        if getattr(scored, "first_order", False):
            lines.append(
                f"  scored to first order; --{option}.no-first-order: with second derivatives, if memory allows"
            )
    say(console, "\n".join(lines))


def _in_short(training: Training) -> str:
    optimizer = getattr(training.optimizer, "name", type(training.optimizer).__name__)
    return (
        f"{training.epochs} epochs, batch {training.batch_size}, {optimizer} lr {training.optimizer.lr:g}, "
        f"{training.precision}"
    )


def short_help(recipe: Callable[..., Experiment], own: Sequence[str], default: Any, config: Any, program: str) -> str:
    """What people need first: the recipe's first sentence and examples, its own options, and those of FIRST.

    default, config: of the whole command, for tyro.
    """
    first, *rest = (recipe.__doc__ or recipe.__name__).strip().splitlines()
    examples = [f"    {line.strip()}" for line in rest if line.startswith(8 * " ")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way to tyro's texts
        parser = tyro.extras.get_parser(type(default), default=default, config=config)
    options = {}
    for action in parser._actions:
        for name in action.option_strings:
            metavar = re.sub(r"\{None\}\||None,| \[.*|[\[\]]", "", str(action.metavar or ""))
            options.setdefault(name, (f"{', '.join(action.option_strings)} {metavar}", action.help or ""))
    names = [f"--{name}" for name in (*own, *FIRST) if f"--{name}" in options]
    lines = [f"usage: {program} [OPTIONS]", "", first, *([""] * bool(examples)), *examples, ""]
    for head, text in (options[name] for name in names):
        explanation, _, value = text.partition("(default: ")
        value = value.rstrip(")")
        given = f" (default: {value})" if value not in ("", "None", "True", "False") else ""
        lines += textwrap.wrap(
            f"{head:24}  {explanation.partition(';')[0].strip()}{given}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=28 * " ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, "", f"  {'--help-all':24}  every other option"])
