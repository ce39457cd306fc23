"""Teachers: other experiments whose networks a run needs, run once and shared by whoever asks for them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from cluster.checkpoints import write_json
from cluster.worker import Worker
from compression import artifact, cost
from pipelines.data.loader import open_loader
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.run_folder import RunFolder
from pipelines.session import Run

Execute = Callable[[Experiment, Worker], dict[str, Any]]


def obtain(run: Run, teacher: Experiment, execute: Execute) -> nn.Module:
    """The network of `teacher`, frozen and in eval mode on the run's device; run first where it is not finished.

    execute: carries out an experiment on this worker; all workers of the run come here together.
    """
    teacher = with_data_of(run.experiment, teacher)
    run.on_first_worker(lambda: _check_classes(run, teacher))
    run.on_first_worker(lambda: _record(run, teacher))
    folder = RunFolder(run.folder.path.parent.parent, teacher.identity)
    before = folder.result.exists()
    try:
        execute(teacher, dataclasses.replace(run.worker, emit=_renamed(run, teacher, before)))
    except Exception as error:
        raise RuntimeError(f"the teacher {teacher.name} (identity {teacher.identity}) failed: {error}") from error
    if not before:
        cost.reset_peak_memory(run.device)  # what the student takes is asked for
    model = artifact.load(folder.path)
    layout = torch.channels_last if run.experiment.training.channels_last else torch.contiguous_format
    model = model.to(device=run.device, dtype=run.dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]
    return model.eval().requires_grad_(False)


def with_data_of(student: Experiment, teacher: Experiment) -> Experiment:
    """The teacher, with its data where the student's lie if they are the same data."""
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


def _record(run: Run, teacher: Experiment) -> None:
    """Write into the run's description whom it learns from."""
    description = run.folder.read_description()
    assert description is not None
    known = description.get("teachers", [])
    if teacher.identity not in known:
        write_json(run.folder.description, {**description, "teachers": [*known, teacher.identity]})


def _check_classes(run: Run, teacher: Experiment) -> None:
    """ValueError before a teacher is trained that knows other classes."""
    if canonical(teacher.data) == canonical(run.experiment.data):
        return
    with contextlib.closing(open_loader(teacher.data, teacher.seed, "cpu")) as loader:
        if loader.info.num_classes != run.info.num_classes:
            raise ValueError(
                f"the teacher {teacher.name} knows {loader.info.num_classes} classes, the student's data have "
                f"{run.info.num_classes}: give a teacher of the same data"
            )


def _renamed(run: Run, teacher: Experiment, before: bool) -> Callable[[dict[str, Any]], None]:
    """The events of a teacher as stages of its student; of one that was finished `before` there is nothing to say."""

    def emit(event: dict[str, Any]) -> None:
        if event["kind"] == "finished" and before:
            return
        if event["kind"] == "finished":
            text = f"teacher {teacher.name}: test accuracy {event['accuracy']:.2%}"
            run.worker.emit({"kind": "note", "text": text})
        elif "stage" in event:
            run.worker.emit({**event, "stage": f"teacher's {event['stage']}"})
        else:
            run.worker.emit(event)

    return emit
