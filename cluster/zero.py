"""DeepSpeed's ZeRO: optimiser state (stage 1), gradients too (2) and weights too (3) are split over the workers."""

import contextlib
import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.environment import environment
from cluster.zero_config import ZeroSettings


@dataclass(frozen=True)
class Shard:
    """The part of a parameter that this worker updates: `num` entries from `start` on, of the flattened parameter.

    flat: the tensor that the optimiser holds; the shard begins there at `offset`.
    """

    flat: Tensor
    offset: int
    start: int
    num: int


class Zero:
    """DeepSpeed's engine around a torch optimiser, with the methods of `cluster.strategy.Single`.

    `unwrap` gives the network back as it was before `prepare`.

    During training weights are contiguous, also with channels_last. At stage 3 there is a second copy of the network,
    for evaluation and checkpoints: DeepSpeed's own network gathers the weights of each layer from all workers at once,
    but in evaluation the workers have different numbers of batches.
    """

    def __init__(self, world_size: int, settings: ZeroSettings) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError(
                "--strategy deepspeed needs the package deepspeed: pip install deepspeed, or use --strategy ddp"
            )
        self._world_size, self._settings = world_size, settings
        self._engine: Any = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        device = next(model.parameters()).device
        if isinstance(optimizer, torch.optim.Adagrad):
            raise ValueError("DeepSpeed replaces Adagrad, and ignores our learning rates then: use --strategy ddp")
        self._before = _Snapshot(model)
        self._whole = copy.deepcopy(model) if self._settings.stage == 3 else None
        for parameter in model.parameters():
            # DeepSpeed assumes contiguous weights; `contiguous()` keeps channels_last where the two look the same.
            parameter.data = parameter.new_empty(parameter.shape).copy_(parameter.detach()).data
        _cleanup.close()  # if an earlier training has failed
        variables = {"LOCAL_RANK": str(device.index or 0), "DS_ACCELERATOR": device.type}
        _cleanup.enter_context(environment(variables))
        _cleanup.enter_context(_process_group(device))
        import deepspeed

        config = self._settings.config(self._world_size)
        with _errors_only(logging.getLogger("DeepSpeed")):  # it warns of torch's optimisers: they are untested
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, dist_init_required=False
            )
        wrapped: Any = self._engine.optimizer
        assert wrapped.optimizer is optimizer, "the training loop sets learning rates there"
        self._shards = _shards(wrapped, model)
        if self._settings.stage == 3 and wrapped.persistent_parameters:
            # Small parameters are not split. Gather them before the first step, as an objective may read them.
            wrapped.persistent_parameters[0].all_gather(wrapped.persistent_parameters)
        return self._engine

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self._engine.step()
        if not self._engine.was_step_applied():
            raise FloatingPointError(
                f"the gradients are not finite at step {self._engine.global_steps - 1} of this start: lower "
                "--training.optimizer.lr, or give the training a warm-up"
            )

    def whole(self, model: nn.Module) -> nn.Module:
        if self._whole is None:
            return model  # at stages 1 and 2 each worker has all weights
        weights = self._gathered(lambda flat: flat.detach())
        with torch.no_grad():
            for name, parameter in self._whole.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
            for buffer, current in zip(self._whole.buffers(), model.buffers(), strict=True):
                buffer.copy_(current)
        return self._whole

    def state(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
        state, found = optimizer.state, {}
        keys = {key: None for shard in self._shards.values() for key in state[shard.flat]}
        for key in keys:
            having = {name: shard for name, shard in self._shards.items() if state[shard.flat].get(key) is not None}
            split = any(getattr(state[shard.flat][key], "shape", None) == shard.flat.shape for shard in having.values())
            if split:
                found[key] = self._gathered(lambda flat, key=key: state[flat][key], having)
            else:
                found[key] = {name: torch.as_tensor(state[shard.flat][key]) for name, shard in having.items()}
        return {f"{name}/{key}": found[key][name] for name in self._shards for key in keys if name in found[key]}

    def load_state(self, optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
        fused = optimizer.defaults.get("fused")
        for full_name, value in stored.items():
            name, key = full_name.rsplit("/", 1)
            shard = self._shards[name]
            state = optimizer.state[shard.flat]
            if value.shape == self._before.shape(name):
                if key not in state:
                    state[key] = torch.zeros_like(shard.flat, dtype=value.dtype)
                part = value.flatten()[shard.start : shard.start + shard.num]
                state[key][shard.offset : shard.offset + shard.num] = part.to(shard.flat.device)
            else:
                state[key] = value.to(shard.flat.device) if fused else value.clone()

    def unwrap(self, model: nn.Module) -> nn.Module:
        inner = self._engine.module
        whole = self.whole(inner)
        values = {name: parameter.detach() for name, parameter in whole.named_parameters()}
        inner.train(whole.training)
        self._engine.destroy()
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        self._before.restore(inner, values)
        self._engine = self._whole = None
        self._shards = {}
        _cleanup.close()
        return inner

    def _gathered(
        self, source: Callable[[Tensor], Tensor], shards: dict[str, Shard] | None = None
    ) -> dict[str, Tensor]:
        """Parameter name -> full tensor, from every worker's shards of `source(flat)`; one collective."""
        shards = self._shards if shards is None else shards
        if not shards:
            return {}
        sizes = [self._before.shape(name).numel() for name in shards]
        first = source(next(iter(shards.values())).flat)
        # Each entry is non-zero on one worker only, so the sum is exact.
        total = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        for part, shard in zip(total.split(sizes), shards.values(), strict=True):
            part[shard.start : shard.start + shard.num] = source(shard.flat)[shard.offset : shard.offset + shard.num]
        dist.all_reduce(total)
        return {
            name: part.view(self._before.shape(name)) for name, part in zip(shards, total.split(sizes), strict=True)
        }


class _Snapshot:
    """A network's memory layouts, and the attributes of its modules and parameters.

    DeepSpeed adds attributes to both, and replaces the memory of the parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, set(vars(module)), module._parameters) for module in model.modules()]
        self._attributes = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
        self._layouts = {n: torch.empty_like(p, device="meta").detach() for n, p in model.named_parameters()}

    def shape(self, name: str) -> torch.Size:
        return self._layouts[name].shape

    def restore(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        """Restore all of it in place, with `values` as the parameters' values."""
        for module, attributes, parameters in self._modules:
            module._parameters = parameters
            for added in set(vars(module)) - attributes:
                delattr(module, added)
        for name, parameter in model.named_parameters():
            vars(parameter).clear()
            vars(parameter).update(self._attributes[name])
            layout = self._layouts[name]
            parameter.data = torch.empty_like(layout, device=values[name].device).copy_(values[name])
            parameter.grad = None


def _shards(zero: Any, model: nn.Module) -> dict[str, Shard]:
    """Name -> shard of every parameter that the optimiser has."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Shard] = {}
    rank = dist.get_rank()
    if hasattr(zero, "fp16_groups"):  # stage 3 splits each parameter into equal shards and pads the last one
        for number, group in enumerate(zero.fp16_groups):
            for parameter in group:
                _, place, size = zero.grad_position[zero.get_param_id(parameter)]
                start = min(size * rank, parameter.ds_numel)
                num = min(size, parameter.ds_numel - start)
                found[names[id(parameter)]] = Shard(zero.fp32_partitioned_groups_flat[number], place, start, num)
    else:  # stages 1 and 2 concatenate the parameters of a group and split the result
        for number, group in enumerate(zero.bit16_groups):
            flat = zero.single_partition_of_fp32_groups[number]
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:
                    found[names[id(parameter)]] = Shard(flat, 0, 0, 0)
                    continue
                inside, here = mapping.lp_fragment_address, mapping.hp_fragment_address
                found[names[id(parameter)]] = Shard(flat, here.start, inside.start, inside.numel)
    return {name: found[name] for name in names.values() if name in found}


@contextlib.contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_cleanup = contextlib.ExitStack()
"""Restores what a training has changed in the process; only one trains at a time."""

_last_world: Any = None
"""The default process group on which DeepSpeed's own groups are based."""


@contextlib.contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """Let DeepSpeed use the current default process group, or one of this worker alone if there is none."""
    global _last_world
    alone = not dist.is_initialized()
    if alone:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    from deepspeed import ops
    from deepspeed.comm import comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups

    # It takes minutes to compile, and sums in another order than gloo.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if _last_world is not dist.group.WORLD:  # the launcher makes new groups after a failed item
        comm.cdb = None
        groups._WORLD_GROUP = None
        _last_world = dist.group.WORLD
    yield
    parameter_offload.FWD_MODULE_STACK.clear()
    if alone:
        dist.destroy_process_group()
