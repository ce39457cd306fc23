"""Cost: parameters and multiply-accumulates, dense and effective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.masks import PRUNABLE_LAYERS


@dataclass(frozen=True)
class Cost:
    """What a network weighs and what one forward pass of one image takes.

    params: all parameters. nonzero_params: those that are not exactly zero.
    macs: multiply-accumulates of convolutions and linear layers (no bias, BatchNorm, activation or pooling).
    effective_macs: those whose weight is not zero: what a perfect sparse kernel would do. Dense kernels do `macs`.
    """

    params: int
    nonzero_params: int
    macs: int
    effective_macs: int


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """The cost of `model` for one image of shape (C, H, W), counted in a real forward pass in eval mode."""
    macs = effective = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, effective
        weight = module.get_parameter("weight")
        # A weight is used once per output position: (C, positions...) for convolutions, (K,) for linear layers.
        positions = output[0].numel() // weight.shape[0]
        macs += weight.numel() * positions
        effective += int(weight.count_nonzero()) * positions

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, PRUNABLE_LAYERS)]
    modes = [(module, module.training) for module in model.modules()]
    example = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=example.dtype, device=example.device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    parameters = list(model.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzero_params=sum(int(p.detach().count_nonzero()) for p in parameters),
        macs=macs,
        effective_macs=effective,
    )
