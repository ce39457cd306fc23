"""Take over finished runs of another storage, such as that of a machine without MLflow: whole and verified."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.suites import Suite, experiments
from cluster.atomic import hidden_name, publish_folder, remove_leftovers, sync
from cluster.lock import lock
from cluster.records import read_json
from cluster.verify import verify_run
from pipelines import reuse
from pipelines.experiment import Experiment
from pipelines.progress import say
from pipelines.run_folder import RunFolder
from pipelines.teachers import needed

LEFT_BEHIND = ("lock", ".tmp-*", ".partial-*", ".replaced-*")
"""What of a run's folder belongs to the machine that ran it."""


def take_over(suite: Suite, other: Path, storage: Path, console: Console) -> int:
    """Copy the finished runs of a suite, and of its teachers, from the storage `other`. What does not fit is named.

    1: a run is damaged or of other data; those of other suites, unfinished ones, and those that are here already are no
    fault. ValueError: `other` is no storage, or is this one.
    """
    if not (other / "orchard.json").is_file():
        raise ValueError(f"{other} is no storage: give the folder that was --storage there")
    if other.resolve() == storage.resolve():
        raise ValueError(f"{other} is this storage: give another one's folder")
    wanted = {each.identity: each for run in experiments(suite) for each in (*needed(run), run)}
    taken, faults = 0, 0
    with lock(storage / "import/lock", lambda text: say(console, text)):
        remove_leftovers(storage / "import")
        for path in sorted(path for path in (other / "runs").glob("*") if not path.name.startswith(".")):
            if path.name not in wanted:
                say(console, f"left out, not of {suite.name}: {_name(path)}")
            elif RunFolder(storage, path.name).result.exists():
                say(console, f"here already: {wanted[path.name].name}")
            elif not (path / "result.json").exists():
                say(console, f"left out, not finished: {wanted[path.name].name}", "yellow")
            elif wrong := refusals(wanted[path.name], other, storage):
                faults += 1
                say(console, f"refused: {wanted[path.name].name}: {'; '.join(wrong)}", "red")
            else:
                copy(path, RunFolder(storage, path.name), console)
                taken += 1
    say(console, f"{taken} runs were taken over from {other}")
    return 1 if faults else 0


def refusals(experiment: Experiment, other: Path, storage: Path) -> Sequence[str]:
    """Why a finished run of `other` cannot count here; empty: it can."""
    folder = RunFolder(other, experiment.identity)
    if wrong := verify_run(folder.result).wrong:
        return wrong
    try:
        result = folder.read_result()
        assert result is not None
        if result.get("identity") != experiment.identity:
            return [f"{folder.result} is of the run {result.get('identity')}"]
        reuse.check(experiment, folder, result, reuse.fingerprints(experiment, storage))
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def copy(source: Path, target: RunFolder, console: Console) -> None:
    """Copy a run's folder; it is there completely or not at all. An unfinished run at its place is replaced."""
    target.path.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_name(target.storage / "import")
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    if wrong := verify_run(partial / "result.json").wrong:
        raise ValueError(f"{source} has changed while it was copied: {'; '.join(wrong)}")
    for folder, _, files in os.walk(partial):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if target.path.exists():
        with lock(target.lock, lambda text: say(console, text)):
            publish_folder(partial, target.path)
    else:
        publish_folder(partial, target.path)


def _name(path: Path) -> str:
    """What a run says it is, or the name of its folder."""
    for record in ("result.json", "run.json"):
        try:
            return f"{read_json(path / record)['name']} ({path.name})"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return path.name
