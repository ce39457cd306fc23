"""The memory that a full meta-gradient needs, estimated before it is computed, and the memory that is free."""

import copy
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compression.batch import Batch
from compression.criteria.chunks import detached_buffers, total_loss
from compression.criteria.second_order import CheapSecondOrder
from compression.modules import in_mode
from compression.objectives.base import Objective

HEADROOM = 1.5
"""Peak memory over that of the graphs (gradients, fragmentation). Measured with ResNet-18, 20 and 50: 1.2 to 1.7."""

GIB = 2**30


def check_memory(model: nn.Module, batch: Batch, objective: Objective, steps: int) -> None:
    """ValueError with both sizes if a full meta-gradient through `steps` steps does not fit into free memory."""
    needed, free = meta_gradient_bytes(model, batch, objective, steps), free_bytes(batch.images.device)
    if needed > free:
        raise ValueError(
            f"the full meta-gradient over {steps} steps with {len(batch)} images needs about {needed / GIB:.1f} GiB of "
            f"memory, but only {free / GIB:.1f} GiB are free: use first_order (with chunk_size, for even less memory), "
            "or a smaller scoring_batch_size"
        )


def meta_gradient_bytes(model: nn.Module, batch: Batch, objective: Objective, steps: int) -> int:
    """Estimated additional peak memory of a full meta-gradient through `steps` steps of `batch`.

    Extrapolated from the tensors that autograd keeps with 2 and with 4 images. Random numbers are not changed.
    """
    devices = [batch.images.device] if batch.images.is_cuda else []
    with torch.random.fork_rng(devices), in_mode(model, training=True):
        sizes = [min(2, len(batch)), min(4, len(batch))]
        kept = [_kept_bytes(model, batch.part(0, size), objective) for size in sizes]
    growth = [(b - a) / max(1, sizes[1] - sizes[0]) for a, b in zip(*kept, strict=True)]
    loss, both = (a + g * (len(batch) - sizes[0]) for a, g in zip(kept[0], growth, strict=True))
    return round(HEADROOM * (steps * both + loss))


def _kept_bytes(model: nn.Module, batch: Batch, objective: Objective) -> tuple[int, int]:
    """Bytes kept by the graph of the loss, and by this graph together with that of the gradient."""
    objective = copy.deepcopy(objective)
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = detached_buffers(model)
    with torch.no_grad():
        # For an objective with state, the second call is representative of all later ones.
        total_loss(model, parameters, buffers, objective, batch)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept alive, so that no other tensor can get the same address.
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    def num_bytes() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    with torch.enable_grad(), CheapSecondOrder(), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = total_loss(model, parameters, buffers, objective, batch)
        of_loss = num_bytes()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
        # Each step also has its own weights, which are as large as their gradients.
        step = sum(g.untyped_storage().nbytes() for g in gradients if g is not None)
        return of_loss, num_bytes() + step


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that this process can still allocate, within the limits of its control groups."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *control_group_bytes()])


def control_group_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Memory left by each limit on this process: of its control group and those above it (versions 1 and 2)."""
    if not own.exists():
        return []
    left = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files, base = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            files, base = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), root / "memory"
        else:
            continue
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            left += _left_in(base / group, *files)
    return left


def _left_in(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """[limit - usage], without the page cache that can be dropped; [] if there is no limit."""
    if not (folder / limit).exists() or (text := (folder / limit).read_text().strip()) == "max":
        return []
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return [int(text) - int((folder / usage).read_text()) + int(statistics.get(cache, 0))]
