"""Costs: what a finished network weighs, how fast it is, and what it took to make it."""

from __future__ import annotations

from typing import Any

from torch import nn

from compression import cost
from compression.compaction import compact
from compression.masks import prunable
from compression.objectives import CrossEntropy
from pipelines.run_folder import RunFolder
from pipelines.session import Run
from pipelines.teachers import closure
from pipelines.training import step_flops

LATENCY_BATCHES = (1, 8, 64)
"""Images per forward pass for which its seconds are measured."""


def log_costs(run: Run, model: nn.Module) -> None:
    """Everything that a table says of costs; on the first worker alone."""
    counted = cost.count(model, run.info.input_shape)
    weights = prunable(model)
    kept = sum(int(weight.detach().count_nonzero()) for weight in weights.values())
    run.log(
        **{
            "cost/parameters": counted.params,
            "cost/nonzero_parameters": counted.nonzero_params,
            "cost/macs": counted.macs,
            "cost/effective_macs": counted.effective_macs,
            "cost/achieved_sparsity": 1 - kept / sum(weight.numel() for weight in weights.values()),
        }
    )
    seconds = cost.latency(model, run.info.input_shape, LATENCY_BATCHES, seconds=0.3)
    run.log(**{f"cost/latency_seconds_batch_{size}": value for size, value in seconds.items()})
    run.log(**{"cost/peak_memory_bytes": cost.peak_memory(run.device)})
    if counted.effective_macs < counted.macs:
        _log_compacted(run, model)
    _log_training(run)


def _log_compacted(run: Run, model: nn.Module) -> None:
    """What is left once the channels are gone that the masks left dead."""
    try:
        small = cost.count(compact(model, run.info.input_shape), run.info.input_shape)
    except ValueError as error:
        run.note(f"the cost after compaction is not known: {error}")
        return
    run.log(**{"cost/compacted_parameters": small.params, "cost/compacted_macs": small.macs})


def _log_training(run: Run) -> None:
    """Floating-point operations of the run and of its teachers, in dense epochs of the experiment's own network."""
    settings = run.experiment.training
    dense_step = step_flops(run, "cost", run.model(), CrossEntropy(), settings)
    dense_epoch = dense_step * run.loader.steps_per_epoch(settings.batch_size)
    own, seconds = _sum(run, "_flops"), _sum(run, "_seconds")
    teachers = 0.0
    storage = run.folder.path.parent.parent
    for folder in closure(run.folder, lambda identity: RunFolder(storage, identity)):
        result: dict[str, Any] = folder.read_result() or {}
        teachers += result["metrics"]["cost/own_training_flops"]
    run.log(
        **{
            "cost/run_seconds": seconds,
            "cost/own_training_flops": own,
            "cost/training_flops": own + teachers,
            "cost/own_dense_epochs": own / dense_epoch,
            "cost/dense_epochs": (own + teachers) / dense_epoch,
        }
    )


def _sum(run: Run, ending: str) -> float:
    """Over all stages of the run so far."""
    return sum(r["value"] for r in run.history.values() if r["key"].startswith("cost/") and r["key"].endswith(ending))
