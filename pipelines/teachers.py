"""Teachers: other experiments whose networks a run needs. Each is run once and shared by all who need it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from cluster.checkpoints import write_json
from cluster.worker import Worker
from compression import artifact, cost
from pipelines.context import RunContext
from pipelines.data.loader import open_loader
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.run_folder import RunFolder

Execute = Callable[[Experiment, Worker], dict[str, Any]]


def obtain(context: RunContext, teacher: Experiment, execute: Execute) -> nn.Module:
    """The network of `teacher`, on the CPU. An experiment that is not finished is run first. Collective.

    execute: runs an experiment on this worker.
    """
    teacher = with_data_of(context.experiment, teacher)
    context.on_first_worker(lambda: _check_classes(context, teacher))
    context.on_first_worker(lambda: _record(context, teacher))
    folder = RunFolder(context.folder.storage, teacher.identity)
    finished_before = folder.result.exists()
    try:
        execute(teacher, dataclasses.replace(context.worker, emit=_teacher_events(context, teacher, finished_before)))
    except Exception as error:
        raise RuntimeError(f"the teacher {teacher.name} (identity {teacher.identity}) failed: {error}") from error
    if not finished_before:
        cost.reset_peak_memory(context.device)  # the student's peak memory is reported without its teacher's training
    return artifact.load(folder.path)


def with_data_of(student: Experiment, teacher: Experiment) -> Experiment:
    """The teacher; if both have the same data, it reads them from where the student does."""
    same = canonical(student.data) == canonical(teacher.data)
    return dataclasses.replace(teacher, data=student.data) if same else teacher


def closure(folder: RunFolder, folders_of: Callable[[str], RunFolder]) -> Iterable[RunFolder]:
    """The folders of a run's teachers and of their teachers, each once, the nearest first."""
    found: dict[str, RunFolder] = {}
    waiting = [folder]
    while waiting:
        for identity in (waiting.pop(0).read_description() or {}).get("teachers", []):
            if identity not in found:
                found[identity] = folders_of(identity)
                waiting.append(found[identity])
    return found.values()


def _record(context: RunContext, teacher: Experiment) -> None:
    """Add the teacher's identity to the run's description."""
    description = context.folder.read_description()
    assert description is not None
    known = description.get("teachers", [])
    if teacher.identity not in known:
        write_json(context.folder.description, {**description, "teachers": [*known, teacher.identity]})


def _check_classes(context: RunContext, teacher: Experiment) -> None:
    """ValueError, before anything is trained, if the teacher's data have another number of classes."""
    if canonical(teacher.data) == canonical(context.experiment.data):
        return
    with contextlib.closing(open_loader(teacher.data, teacher.seed, "cpu")) as loader:
        if loader.info.num_classes != context.info.num_classes:
            raise ValueError(
                f"the teacher {teacher.name} knows {loader.info.num_classes} classes, the student's data have "
                f"{context.info.num_classes}: give a teacher of the same data"
            )


def _teacher_events(
    context: RunContext, teacher: Experiment, finished_before: bool
) -> Callable[[dict[str, Any]], None]:
    """Shows a teacher's events as stages of its student. A teacher that was finished before emits nothing."""

    def emit(event: dict[str, Any]) -> None:
        if event["kind"] == "finished":
            if not finished_before:
                text = f"teacher {teacher.name}: test accuracy {event['accuracy']:.2%}"
                context.worker.emit({"kind": "note", "text": text})
        elif "stage" in event:
            context.worker.emit({**event, "stage": f"teacher's {event['stage']}"})
        else:
            context.worker.emit(event)

    return emit
