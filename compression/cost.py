"""Cost: parameters, operations of a forward pass and of a training step, latency and peak memory of a network.

A multiply-accumulate (MAC) is one multiplication and one addition: two floating-point operations (FLOPs).
"""

import copy
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compression import slicing
from compression.batch import Batch
from compression.dependencies import Group, is_grouped, is_norm
from compression.masks import PRUNABLE_LAYERS
from compression.modules import in_mode, is_channels_last
from compression.objectives.base import Objective
from compression.weight_use import weight_use

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """The size of a network and the cost of a forward pass of one image.

    params: all parameters. nonzero_params: those that are not exactly zero.
    macs: multiply-accumulates with weights, in convolutions and matrix products of any module (no bias, BatchNorm,
    activation or pooling; no products of activations with each other, as in attention).
    effective_macs: those with a non-zero weight, as in a perfect sparse kernel. Dense kernels execute all `macs`.
    """

    params: int
    nonzero_params: int
    macs: int
    effective_macs: int


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """The cost of `model` for one image of shape (C, H, W), counted in a real forward pass in eval mode."""
    parameters = list(model.parameters())
    uses = weight_use(model, torch.zeros(1, *input_shape, dtype=parameters[0].dtype, device=parameters[0].device))
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzero_params=sum(int(p.detach().count_nonzero()) for p in parameters),
        macs=sum(use.macs for use in uses),
        effective_macs=sum(use.effective for use in uses),
    )


def quadratic_costs(model: nn.Module, groups: Sequence[Group], images: Tensor) -> tuple[Tensor, Tensor]:
    """(MACs, parameters) of `model` as float64 matrices Q of shape (1 + num_groups, 1 + num_groups).

    A layer's cost is proportional to the product of its numbers of input and output channels. So with
    s = (1, channels of the first group, of the second...), the cost of the network is s'Qs.
    images: (N, C, H, W), for one forward pass that counts how often weights are used.
    """
    layers = dict(model.named_modules())
    sides: dict[tuple[str, str], Tensor] = {}
    for number, group in enumerate(groups, 1):
        for member in group.members:
            default = torch.zeros(len(groups) + 1, dtype=torch.float64)
            default[0] = slicing.size(layers[member.layer], member)
            side = sides.setdefault((member.layer, member.side), default)
            each = len(member.indices[0])
            side[number] += each
            side[0] -= each * group.num_channels
    one = torch.zeros(len(groups) + 1, dtype=torch.float64)
    one[0] = 1
    macs, parameters = torch.zeros(2, len(one), len(one), dtype=torch.float64)
    uses = {use.parameter: use.macs for use in weight_use(model, images[:1])}
    for name, layer in layers.items():
        own = sum(p.numel() for p in layer.parameters(recurse=False))
        outputs = sides.get((name, "out"))
        if isinstance(layer, PRUNABLE_LAYERS):
            outputs = slicing.width(layer, "out") * one if outputs is None else outputs
            inputs = sides.get((name, "in"), slicing.width(layer, "in") * one)
            if is_grouped(layer):
                inputs = layer.weight.shape[1] * one
            weights = torch.outer(outputs, inputs) * layer.weight[0, 0].numel()
            parameters += weights
            macs += weights * (uses.get(f"{name}.weight" if name else "weight", 0) / layer.weight.numel())
            if layer.bias is not None:
                parameters += torch.outer(outputs, one)
        elif is_norm(layer) and outputs is not None:
            parameters += torch.outer(outputs, one) * (own // slicing.width(layer, "out"))
        else:
            parameters[0, 0] += own
    return macs, parameters


IMAGES = 2
"""Images of the step that `training_flops` runs: the fewest for which BatchNorm in train mode has statistics."""


def training_flops(model: nn.Module, objective: Objective, batch: Batch) -> float:
    """FLOPs of one training step for one image: all forward passes of `objective`, its teacher's too, and backward.

    A step runs on copies of model and objective with the first images of `batch`, which has the model's device and
    precision. Model, objective, hooks and random numbers are not changed. The optimiser is not counted.
    The second step is counted, since DLB has no previous batch in the first. KD with a cache is counted with teacher.
    """
    few = batch.part(0, IMAGES)
    # Copied together, since an objective may refer to parts of the model. The copy of a compiled model is not compiled.
    model, objective = copy.deepcopy((model, objective))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        loss = torch.stack(list(objective(model, few).values())).sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    devices = [few.images.device] if few.images.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        step()
        _, flops = count_flops(step)
    return flops / len(few)


def count_flops(fn: Callable[[], T]) -> tuple[T, int]:
    """(result of `fn`, FLOPs that it executed in this thread, backward passes included).

    Convolutions, matrix products and attention count, with 2 FLOPs per multiply-accumulate, zero weights included; not
    element-wise operations, normalisation and pooling. Networks compiled by `torch.compile` cannot be counted.
    """
    counter = _Counter()
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fused kernel of nn.MultiheadAttention is one operation, for which there is no formula.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter:
            result = fn()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return result, counter.flops


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of every operation below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None and _is_composite(func):
            # In inference mode, composite operations (linear) arrive undivided; their parts (addmm) have formulas.
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


@functools.cache
def _is_composite(func: Any) -> bool:
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _convolution_backward(grad_output: Tensor, images: Tensor, weight: Tensor, *others: Any, out_val: Any) -> int:
    """As many as the forward pass for each gradient, of images and of weight (PyTorch's formula ignores groups)."""
    _, _, _, _, transposed, _, _, output_mask = others
    positions = math.prod((images if transposed else grad_output).shape[2:])
    return 2 * len(images) * positions * weight.numel() * sum(output_mask[:2])


_aten = torch.ops.aten
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[_attention_backward],
}
"""Operation -> FLOPs from its arguments and result: PyTorch's formulas, with corrections and additions."""


def latency(
    model: nn.Module, input_shape: tuple[int, int, int], batch_sizes: Sequence[int] = (1, 8, 64), seconds: float = 1.0
) -> dict[int, float]:
    """Batch size -> median seconds of one forward pass, in eval mode, on the model's device and in its precision.

    input_shape: (C, H, W). seconds: to spend on each batch size; at least 3 passes are timed, after a warm-up pass.
    The images have the memory format of the weights (channels_last or not). The number of threads is not changed.
    """
    example = next(model.parameters())
    layout = torch.channels_last if is_channels_last(model) else torch.contiguous_format
    draw = torch.Generator().manual_seed(0)
    found = {}
    with in_mode(model, training=False), torch.inference_mode():
        for size in batch_sizes:
            images = torch.randn(size, *input_shape, generator=draw).to(example).contiguous(memory_format=layout)
            model(images)
            _synchronise(example.device)
            timings: list[float] = []
            while len(timings) < 3 or sum(timings) < seconds:
                start = time.perf_counter()
                model(images)
                _synchronise(example.device)
                timings.append(time.perf_counter() - start)
            found[size] = statistics.median(timings)
    return found


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device | str) -> int:
    """Peak bytes since the last reset or the start of the process: of CUDA tensors, or resident for the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource  # not part of Python on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device | str) -> bool:
    """Reset `peak_memory` to the memory in use now; returns whether this was possible.

    On the CPU this needs /proc/self/clear_refs. Without it, the peak of later runs is an upper bound.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
