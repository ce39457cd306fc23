"""Teachers: other experiments whose networks a run needs. Each is run once and shared by all who need it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from cluster.records import write_record
from cluster.worker import Worker
from compression import artifact, cost
from compression.methods import Dense
from pipelines.context import RunContext
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.provenance import with_dirty
from pipelines.run_folder import RunFolder

Execute = Callable[[Experiment, Worker], dict[str, Any]]


def obtain(context: RunContext, teacher: Experiment, execute: Execute) -> nn.Module:
    """The network of `teacher`, on the CPU. An experiment that is not finished is run first. Collective.

    execute: runs an experiment on this worker.
    """
    context.on_first_worker(lambda: _record(context, teacher))
    folder = RunFolder(context.folder.storage, teacher.identity)
    finished_before = folder.result.exists()
    try:
        emit = _teacher_events(context, teacher, finished_before)
        result = execute(teacher, dataclasses.replace(context.worker, emit=emit))
    except Exception as error:
        raise RuntimeError(f"the teacher {teacher.name} (identity {teacher.identity}) failed: {error}") from error
    context.on_first_worker(lambda: _mark(context, result))
    if not finished_before:
        cost.reset_peak_memory(context.device)  # the student's peak memory is reported without its teacher's training
    return artifact.load(folder.path, allow_import=teacher.model)


def teacher_of(student: Experiment, given: Experiment | None = None, method: Any = None) -> Experiment:
    """What `Session.teacher` means: `given` or the student's own network, trained densely or by `method`."""
    teacher = given or dataclasses.replace(student, method=Dense())
    return with_data_of(student, teacher if method is None else dataclasses.replace(teacher, method=method))


def needed(experiment: Experiment) -> list[Experiment]:
    """The runs that an experiment needs before its own, each once, in the order in which they run."""
    found: dict[str, Experiment] = {}
    for arguments in experiment.method.teachers:
        teacher = teacher_of(experiment, *arguments)
        found |= {each.identity: each for each in (*needed(teacher), teacher) if each.identity not in found}
    return list(found.values())


def with_data_of(student: Experiment, teacher: Experiment) -> Experiment:
    """The teacher; if both have the same data, it reads them from where the student does."""
    same = canonical(student.data) == canonical(teacher.data)
    return dataclasses.replace(teacher, data=student.data) if same else teacher


def with_followers(experiment: Experiment, before: Experiment) -> Experiment:
    """The experiment after its values changed: teachers with the data or the training of `before` get the new ones."""

    def changed(value: Any) -> Any:
        if isinstance(value, Experiment):
            data = experiment.data if value.data == before.data else value.data
            training = experiment.training if value.training == before.training else value.training
            value = dataclasses.replace(value, data=data, training=training)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        parts = {item.name: changed(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)

    return dataclasses.replace(experiment, method=changed(experiment.method))


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
        write_record(context.folder.description, {**description, "teachers": [*known, teacher.identity]})


def _mark(context: RunContext, result: dict[str, Any]) -> None:
    """A student is dirty if its teacher is. result: of the teacher."""
    description = context.folder.read_description()
    assert description is not None
    tags = with_dirty(description["tags"], result["tags"].get("dirty"))
    if tags != description["tags"]:
        write_record(context.folder.description, {**description, "tags": tags})


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
