"""Execute: one experiment on one worker, from the lock to the artefact. The body that launchers run."""

from __future__ import annotations

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

from cluster.checkpoints import write_json
from cluster.lock import Lock
from cluster.worker import Worker
from compression import artifact, cost
from compression.methods import METHODS
from pipelines import identity
from pipelines.costs import log_costs
from pipelines.data.loader import open_loader
from pipelines.experiment import Experiment, Placement
from pipelines.run_folder import RunFolder
from pipelines.session import Run
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
    """Run `work.experiment`, or what is left of it, and return what its result.json says."""
    experiment = work.experiment
    folder = RunFolder(work.storage, experiment.identity)
    num_loaders = work.placement.loader_workers
    if num_loaders is None:
        num_loaders = min(8, os.cpu_count() or 1)
    loader = open_loader(experiment.data, experiment.seed, worker.device, _image_dtype(experiment), num_loaders)

    def execute_teacher(teacher: Experiment, worker: Worker) -> dict[str, Any]:
        return execute(replace(work, experiment=teacher), worker)

    run = Run(experiment, work.placement, worker, loader, folder, partial(obtain, execute=execute_teacher))
    try:
        run.strategy_for(experiment.training)  # refuse what cannot be before anything is computed
        with _lock(run):
            result = run.on_first_worker(folder.read_result)
            if result is None:
                run.on_first_worker(lambda: _begin(run, work))
                cost.reset_peak_memory(run.device)
                model = METHODS[type(experiment.method)](run, experiment.method)
                _finish(run, model)
                result = run.on_first_worker(lambda: _write_result(run, work, model))
        run.emit(kind="finished", accuracy=result["metrics"]["test/accuracy"])
        return result
    finally:
        loader.close()


def _image_dtype(experiment: Experiment) -> torch.dtype:
    return torch.float64 if experiment.training.precision == "float64" else torch.float32


@contextlib.contextmanager
def _lock(run: Run) -> Iterator[None]:
    """Held by the first worker while any of them works on this run."""
    lock = Lock(run.folder.lock)

    def acquire() -> None:
        lock.acquire(lambda text: run.emit(kind="waiting", text=text))

    run.on_first_worker(acquire)
    try:
        yield
    finally:
        if run.worker.rank == 0:
            lock.release()


def _begin(run: Run, work: Work) -> None:
    """Write the description of a new run; check that an old one can go on here."""
    placement = placement_of(run)
    before = run.folder.read_description()
    if before is None:
        description = {
            "identity": run.experiment.identity,
            "name": run.experiment.name,
            "experiment": identity.canonical(run.experiment),
            "placement": placement,
            "earlier_placements": [],
            "labels": labels(run.experiment),
            "data": run.loader.fingerprint,
            "tags": dict(work.tags),
            "started_ms": int(time.time() * 1000),
        }
        write_json(run.folder.description, description)
        return
    if before["data"] != run.loader.fingerprint:
        raise ValueError(
            f"the run in {run.folder.path} was begun on other data of the same name (fingerprint {before['data']}, now "
            f"{run.loader.fingerprint}): give back those files, or start it in another --storage"
        )
    if before["placement"] == placement:
        return
    if not work.placement.accept_placement:
        raise ValueError(
            f"the run in {run.folder.path} was begun with {before['placement']} and is to go on with {placement}: it "
            "would not be the same run bit for bit; give the same again, or --accept-placement"
        )
    run.emit(kind="note", text=f"goes on with {placement}, was begun with {before['placement']}")
    earlier = [*before["earlier_placements"], before["placement"]]
    write_json(run.folder.description, {**before, "placement": placement, "earlier_placements": earlier})


def placement_of(run: Run) -> dict[str, Any]:
    """What must be the same for a run to go on bit for bit."""
    asked = run.placement
    placement = {"workers": run.worker.world_size, "threads": asked.threads, "strategy": run.strategy}
    if run.strategy == "deepspeed":
        placement |= {"zero_stage": asked.zero_stage, "deepspeed_config": asked.deepspeed_config}
    return placement


def _finish(run: Run, model: nn.Module) -> None:
    """The headline numbers of a trained network, and its costs."""
    run.emit(kind="stage", stage="test")
    run.log(**{f"test/{key}": value for key, value in run.evaluate(model, "test").items()})
    run.on_first_worker(lambda: log_costs(run, model))


def _write_result(run: Run, work: Work, model: nn.Module) -> dict[str, Any]:
    artifact.save(model, run.folder.path)
    description = run.folder.read_description()
    assert description is not None
    history = list(run.history.values())
    last = {r["key"]: r["value"] for r in sorted(history, key=lambda r: r["step"])}
    result = {
        **description,
        "placement": {**description["placement"], "launcher": work.placement.launcher},
        "tags": dict(work.tags),
        "environment": environment(run.device),
        "finished_ms": int(time.time() * 1000),
        "metrics": last,
        "history": history,
    }
    write_json(run.folder.result, result)
    run.folder.error.unlink(missing_ok=True)
    return result


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of the worker that made the result."""
    import importlib.metadata

    packages = ("torch", "torchvision", "ray", "mlflow", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
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
    """The words by which tables and the MLflow UI tell runs apart."""
    method = experiment.method
    return {
        "dataset": experiment.data.label,
        "model": experiment.model,
        "method": METHODS[type(method)].__name__,
        "method_label": method.label,
        "objective": method.objective.label,
        "seed": str(experiment.seed),
        "sparsity": f"{experiment.sparsity:g}",
    }
