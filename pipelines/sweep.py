"""Search the settings of a recipe with Ray Tune: python pipelines/sweep.py --help"""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from cluster.atomic import write_atomically
from cluster.exit import exit_process
from pipelines.driver import STOPPED_STATUS
from pipelines.progress import complain, duration, refusing, say
from pipelines.search import options as asked
from pipelines.search import spaces
from pipelines.search.confirm import confirm
from pipelines.search.options import Sweep
from pipelines.search.samplers import PER_RANGE
from pipelines.search.sweep import Place, Swept, run_sweep
from pipelines.search.table import best_table, comparison

TRADING = ("sparsity", "rounds", "share", "reduction")
"""Settings that decide how much is removed."""


@refusing(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """The exit status. 0: every sweep has a best trial; 1: all trials of one failed, or some could not end; 2: the
    command is wrong; 130: stopped by Ctrl-C, 143: by SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    options, rest = asked.parser().parse_known_args(argv)
    console = Console()
    found = asked.sweeps(options, rest)
    for sweep in found:
        show(sweep, options.trials, console)
    if options.dry_run:
        return max(show_cost(options.recipe, sweep, options.trials) for sweep in found)
    try:
        return run(found, options, shlex.join(["python", "pipelines/sweep.py", *argv]), console)
    except KeyboardInterrupt:
        complain("stopped; start the same command again to go on")
        return 130


def run(found: Sequence[Sweep], options: Namespace, command: str, console: Console) -> int:
    """Run the sweeps, one after the other, compare them, and confirm what the whole ones found. The exit status."""
    swept: dict[str, tuple[Place, Swept]] = {}
    whole: list[str] = []
    for sweep in found:
        label = sweep.plan.experiment.data.label
        suite = f"{label} sweeps" if sweep.command.suite == label else sweep.command.suite
        where = sweep.command.placement, suite, options.recipe, command
        place = Place(*where, options.parallel, options.gpus_per_trial)
        if len(found) > 1:
            say(console, f"searching {sweep.method}", "bold")
        result = run_sweep(sweep.plan, asked.limits(options), place, console)
        if result.stopped:
            complain("stopped by SIGTERM; start the same command again to go on")
            return STOPPED_STATUS
        swept[sweep.method] = place, result
        if report(result, console):
            whole.append(sweep.method)
    if len(swept) > 1:
        table, text = comparison({name: each.trials for name, (_, each) in swept.items()}, found[0].plan.goal)
        console.print(table)
        for _, each in swept.values():
            write_atomically(each.folder / "comparison.md", text.encode())
    chosen = [swept[method] for method in whole]
    statuses = [confirm(each, options.confirm, options.confirm_front, where, console) for where, each in chosen]
    return max([*statuses, int(len(whole) < len(swept))])


def show(sweep: Sweep, trials: int, console: Console) -> None:
    """Print what is searched, and what that means for the choice."""
    plan = sweep.plan
    size = spaces.num_points(plan.space, PER_RANGE) if plan.search == "grid" else None
    count = f"a grid of {size:,} points, at most {trials} trials" if size else f"{trials} trials by {plan.search}"
    say(console, f"{plan.title}: {count}, scheduler {plan.scheduler}, objective {','.join(plan.goal.names)}")
    console.print(spaces.table(plan.space, plan.experiment))
    for name in sweep.fixed:
        say(console, f"{name} is given as an option: it is not searched")
    trading = [name for name in plan.space if name.rpartition(".")[2] in TRADING]
    if trading and plan.goal.cost is None:
        say(
            console,
            f"{' and '.join(trading)}: more of it is a smaller network, and accuracy alone prefers the larger one: "
            f"fix it with --{trading[0]} VALUE, or use --objective accuracy,effective_macs",
            "yellow",
        )


def show_cost(recipe: str, sweep: Sweep, trials: int) -> int:
    """Plan one trial with benchmarks/plan.py, in a process of its own: this package does not import that one."""
    words = [sys.executable, "-m", "benchmarks.plan", recipe, "--json", *sweep.words, "--no-controls"]
    planned = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if planned.returncode:
        return planned.returncode
    plan = json.loads(planned.stdout)
    hours = plan["plans"][0]["hours"]
    print(f"a whole trial takes {duration(hours * 3600)} on one device ({plan['hardware']}) with its teachers, ")
    print(f"{trials} of them {duration(trials * hours * 3600)}, one after the other. Nothing was started.")
    if others := [name for name in sweep.plan.space if name == "model" or name.startswith(("training.", "data."))]:
        print(f"That is with the default of {', '.join(others)}: other values may take longer or shorter.")
    if sweep.plan.scheduler == "asha":
        print("asha stops many of them early; how many depends on the data.")
    return 0


def report(swept: Swept, console: Console) -> bool:
    """Print the best trials and where everything is. False: nothing was found, or trials could not end."""
    goal = swept.plan.goal
    console.print(best_table(swept.trials, goal))
    if swept.note:
        say(console, f"{len(swept.trials)} trials: {swept.note}", "yellow")
    say(console, f"sweep: {swept.folder}")
    if swept.page:
        say(console, f"MLflow: {swept.page}")
    lost: dict[str, list[str]] = {}
    for number, reason in sorted(swept.lost.items()):
        lost.setdefault(reason, []).append(str(number))
    for reason, numbers in lost.items():
        complain(f"not finished: trial {', '.join(numbers)}: {reason}; start the same command again to go on")
    if not swept.best:
        reasons = Counter(trial.error for trial in swept.trials if trial.error).most_common(3)
        text = "every trial failed:" if reasons and not lost else "no trial is finished"
        complain("\n".join([text, *(f"  {count} times: {error}" for error, count in reasons)]))
        return False
    say(console, f"the best settings, for any recipe: --from {shlex.quote(str(swept.folder / 'best.toml'))}")
    return not swept.lost


if __name__ == "__main__":
    exit_process(main())
