"""Costs of a finished network: its size, its latency, and what its training took."""

from typing import Any

from torch import nn

from compression import cost
from compression.compaction import compact
from compression.masks import prunable
from compression.objectives import CrossEntropy
from pipelines.flops import step_flops
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession
from pipelines.teachers import closure

LATENCY_BATCHES = (1, 8, 64)
"""Batch sizes for which the latency of a forward pass is measured."""


def log_costs(session: ExperimentSession, model: nn.Module) -> None:
    """Record all costs that tables show. Runs on the first worker alone."""
    counted = cost.count(model, session.info.input_shape)
    weights = prunable(model)
    kept = sum(int(weight.detach().count_nonzero()) for weight in weights.values())
    session.log(
        **{
            "cost/parameters": counted.params,
            "cost/nonzero_parameters": counted.nonzero_params,
            "cost/macs": counted.macs,
            "cost/effective_macs": counted.effective_macs,
            "cost/achieved_sparsity": 1 - kept / sum(weight.numel() for weight in weights.values()),
        }
    )
    seconds = cost.latency(model, session.info.input_shape, LATENCY_BATCHES, seconds=0.3)
    session.log(**{f"cost/latency_seconds_batch_{size}": value for size, value in seconds.items()})
    session.log(**{"cost/peak_memory_bytes": cost.peak_memory(session.device)})
    if counted.effective_macs < counted.macs:
        _log_compacted(session, model)
    _log_training(session)


def _log_compacted(session: ExperimentSession, model: nn.Module) -> None:
    """The size after channels that the masks left without any weight are removed."""
    try:
        small = cost.count(compact(model, session.info.input_shape), session.info.input_shape)
    except ValueError as error:
        session.note(f"the cost after compaction is unknown: {error}")
        return
    session.log(**{"cost/compacted_parameters": small.params, "cost/compacted_macs": small.macs})


def _log_training(session: ExperimentSession) -> None:
    """FLOPs of the run and of its teachers, also in epochs of dense training of the experiment's own network."""
    settings = session.experiment.training
    dense_step = step_flops(session, "cost", session.model(), CrossEntropy(), settings)
    dense_epoch = dense_step * session.loader.steps_per_epoch(settings.batch_size)
    own, seconds = _sum(session, "_flops"), _sum(session, "_seconds")
    teachers = 0.0
    for folder in closure(session.folder, lambda identity: RunFolder(session.folder.storage, identity)):
        result: dict[str, Any] = folder.read_result() or {}
        teachers += result["metrics"]["cost/own_training_flops"]
    session.log(
        **{
            "cost/run_seconds": seconds,
            "cost/own_training_flops": own,
            "cost/training_flops": own + teachers,
            "cost/own_dense_epochs": own / dense_epoch,
            "cost/dense_epochs": (own + teachers) / dense_epoch,
        }
    )


def _sum(session: ExperimentSession, ending: str) -> float:
    """Sum over all stages of the run."""
    records = session.history.values()
    return sum(r["value"] for r in records if r["key"].startswith("cost/") and r["key"].endswith(ending))
