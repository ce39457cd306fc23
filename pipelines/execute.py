"""Execute: one experiment on one worker, from the lock to the artefact. This is the body that launchers run."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.atomic import remove_leftovers, write_atomically
from cluster.lock import lock
from cluster.records import write_record
from cluster.worker import Worker
from compression import artifact, cost
from compression.methods import name_of
from pipelines import identity, reuse
from pipelines.checks import check_before_scoring
from pipelines.costs import log_costs
from pipelines.data.loader import Loader, open_loader
from pipelines.experiment import Experiment, Placement
from pipelines.provenance import resumed
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession
from pipelines.teachers import obtain


@dataclass(frozen=True)
class Work:
    """What a worker needs to run one experiment."""

    experiment: Experiment
    placement: Placement
    storage: Path
    tags: Mapping[str, str]
    """what the driver knows of the run: recipe, suite, commit"""


def execute(work: Work, worker: Worker) -> dict[str, Any]:
    """Run `work.experiment`, or what is left of it, and return the content of its result.json. Collective."""
    experiment, folder = work.experiment, RunFolder(work.storage, work.experiment.identity)

    def execute_teacher(teacher: Experiment, worker: Worker) -> dict[str, Any]:
        return execute(replace(work, experiment=teacher), worker)

    with contextlib.closing(_open_loader(work, worker)) as loader:
        obtain_teacher = partial(obtain, execute=execute_teacher)
        session = ExperimentSession(experiment, work.placement, worker, loader, folder, obtain_teacher)
        session.strategy_for(experiment.training)  # refuses what it does not support before anything is computed
        with _lock(session):
            result = session.on_first_worker(lambda: reuse.read_finished(experiment, folder, session.note, loader))
            if result is None:
                session.on_first_worker(lambda: check_before_scoring(session))
                session.on_first_worker(lambda: _begin(session, work))
                if loader.note:
                    session.note(loader.note)
                cost.reset_peak_memory(session.device)
                model = experiment.method.run(session)
                _finish(session, model)
                result = session.on_first_worker(lambda: _write_result(session, work, model))
        session.emit(kind="finished", accuracy=result["metrics"]["test/accuracy"])
        return result


def _open_loader(work: Work, worker: Worker) -> Loader:
    experiment, num_decoders = work.experiment, work.placement.loader_workers
    if num_decoders is None:
        num_decoders = min(8, os.cpu_count() or 1)
    return open_loader(experiment.data, experiment.seed, worker.device, experiment.training.dtype, num_decoders)


@contextlib.contextmanager
def _lock(session: ExperimentSession) -> Iterator[None]:
    """The run's lock, held by the first worker for all of them."""
    with contextlib.ExitStack() as held:

        def acquire() -> None:
            held.enter_context(lock(session.folder.lock, lambda text: session.emit(kind="waiting", text=text)))
            remove_leftovers(session.folder.path)

        session.on_first_worker(acquire)
        yield


def _begin(session: ExperimentSession, work: Work) -> None:
    """Write the description of a new run; check that a started one can resume here."""
    folder, placement, description = session.folder, placement_of(session), session.folder.read_description()
    inputs = reuse.fingerprints(session.experiment, folder.storage, session.loader)
    if description is None:
        if (folder.path / "stages").exists():
            raise ValueError(
                f"{folder.description} is missing, so what the stages beside it were made of is not known: delete "
                f"{folder.path} to start this run from its beginning"
            )
        write_record(folder.description, {**_describe(session, work, placement), "inputs": inputs})
        return
    if not {"data", "placement"} <= description.keys():
        raise ValueError(
            f"{folder.description} does not describe a run: delete {folder.path} to start this run from its beginning"
        )
    reuse.check(session.experiment, folder, description, inputs)
    if "inputs" not in description:
        session.note(f"{folder.path} was started without fingerprints of all that it reads: they are added as they are")
    tags = resumed(description.get("tags", {}), work.tags)
    now = {**description, "inputs": inputs, "tags": tags, **_resumed(session, work, description, placement)}
    if now != description:
        write_record(folder.description, now)


def _resumed(
    session: ExperimentSession, work: Work, description: dict[str, Any], placement: dict[str, Any]
) -> dict[str, Any]:
    """What changes in run.json when a run resumes. ValueError: it would not be the same bit for bit."""
    if description["placement"] == placement:
        return {}
    if not work.placement.accept_placement:
        raise ValueError(
            f"the run in {session.folder.path} was started with {description['placement']} and would resume with "
            f"{placement}: the result would not be the same bit for bit. Use the same settings, or --accept-placement"
        )
    session.note(f"resumes with {placement}; it was started with {description['placement']}")
    earlier = [*description["earlier_placements"], description["placement"]]
    return {"placement": placement, "earlier_placements": earlier}


def _describe(session: ExperimentSession, work: Work, placement: dict[str, Any]) -> dict[str, Any]:
    """The content of run.json."""
    experiment = session.experiment
    return {
        "identity": experiment.identity,
        "name": experiment.name,
        "experiment": identity.canonical(experiment),
        "placement": placement,
        "earlier_placements": [],
        "labels": labels(experiment),
        "data": session.loader.fingerprint,
        "tags": dict(work.tags),
        "started_ms": int(time.time() * 1000),
    }


def placement_of(session: ExperimentSession) -> dict[str, Any]:
    """What must stay the same for a run to resume bit for bit."""
    asked = session.placement
    placement = {"workers": session.worker.world_size, "threads": asked.threads, "strategy": session.strategy}
    if session.strategy == "deepspeed":
        placement |= {"zero_stage": asked.zero_stage, "deepspeed_config": asked.deepspeed_config}
    return placement


def _finish(session: ExperimentSession, model: nn.Module) -> None:
    """Record the test metrics of a trained network, and its costs."""
    session.emit(kind="stage", stage="test")
    session.log(**{f"test/{key}": value for key, value in session.evaluate(model, "test").items()})
    session.on_first_worker(lambda: log_costs(session, model))


def _write_result(session: ExperimentSession, work: Work, model: nn.Module) -> dict[str, Any]:
    """Write the artefact, then result.json, which marks the run as finished."""
    sparsity = session.history["cost/achieved_sparsity", 0]["value"]
    made_by = environment(session.device)
    about = {**session.loader.about, "sparsity": sparsity, "versions": made_by["versions"]}
    files = artifact.save(model, session.folder.path, write_atomically, about)
    description = session.folder.read_description()
    assert description is not None
    history = list(session.history.values())
    result = {
        **description,
        "placement": {**description["placement"], "launcher": work.placement.launcher},
        "environment": made_by,
        "files": files,
        "finished_ms": int(time.time() * 1000),
        "metrics": {r["key"]: r["value"] for r in sorted(history, key=lambda r: r["step"])},  # the last of each
        "history": history,
    }
    write_record(session.folder.result, result)
    session.folder.error.unlink(missing_ok=True)
    return result


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of the worker that made the result."""
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "ray", "mlflow", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"versions": versions, "hardware": name, "host": platform.node()}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def labels(experiment: Experiment) -> dict[str, str]:
    """Short labels by which tables and the MLflow UI tell runs apart."""
    method = experiment.method
    return {
        "dataset": experiment.data.label,
        "model": experiment.model,
        "method": name_of(method),
        "method_label": method.label,
        "objective": method.objective.label,
        "seed": str(experiment.seed),
        "sparsity": f"{experiment.sparsity:g}",
    }
