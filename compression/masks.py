"""Masks: which weights are kept, and the guarantee that the others are exactly zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compression.weight_use import weight_use

PRUNABLE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Linear weights that nn.MultiheadAttention holds itself."""


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolution and linear layers, in parameter order. Criteria score them and masks cover them.

    Those that project the inputs of nn.MultiheadAttention are among them. ValueError: there are none, or a layer
    computes its weight.
    """
    names: set[str] = set()
    for layer, module in model.named_modules():
        own: Sequence[str] = ()
        if isinstance(module, nn.MultiheadAttention):
            own = PROJECTIONS
        elif isinstance(module, PRUNABLE_LAYERS):
            own = ("weight",)
            if "weight" not in module._parameters:
                raise ValueError(
                    f"{layer or 'the network'} ({type(module).__name__}) computes its weight from other parameters (a "
                    "parametrization or weight norm): a mask does not reach it; remove it first"
                )
        names |= {f"{layer}.{name}" if layer else name for name in own}
    found = {name: p for name, p in model.named_parameters() if name in names}
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer: there is nothing to prune")
    return found


def check_maskable(model: nn.Module, images: Tensor) -> None:
    """ValueError that names the weights of `model` that masks would not cover, or that would not act as masked.

    images: (N, C, H, W), for one forward pass in eval mode.
    """
    covered, parameters = prunable(model), dict(model.named_parameters())
    uses = [use for use in weight_use(model, images) if use.parameter in parameters]
    network = type(model).__name__
    if recomputed := sorted({use.parameter for use in uses if not use.exact} & set(covered)):
        raise ValueError(
            f"{network} computes what it multiplies with from {_some(recomputed)} (weight standardisation or another "
            "parametrization): pruned weights would act again. Choose a network with plain layers, or a method without "
            "masks"
        )
    others = sorted({use.parameter for use in uses} - set(covered))
    share = sum(parameters[name].numel() for name in others) / sum(weight.numel() for weight in covered.values())
    if share > MOST_UNCOVERED:
        raise ValueError(
            f"{network} multiplies with {_some(others)}, outside convolution and linear layers, where masks do not "
            f"reach: {share:.1%} as many weights as inside. Choose another network, or a method without masks"
        )


MOST_UNCOVERED = 0.01
"""Weights outside convolution and linear layers (relative positions, for example), as a share of those inside."""


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shuffled(masks: Masks, seed: int) -> Masks:
    """As many weights in each layer, at random places (Frankle et al., ICLR 2021, arXiv 2009.08576).

    Drawn on the CPU: the same on every worker and device.
    """
    draw = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(mask.numel(), generator=draw).to(mask.device) for name, mask in masks.items()}
    return Masks({name: mask.reshape(-1)[orders[name]].view(mask.shape) for name, mask in masks.items()})


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True where the weight is kept."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"the mask of {name} must be a bool tensor, not {mask.dtype}")
        self._masks = dict(masks)

    @classmethod
    def ones_like(cls, tensors: Mapping[str, Tensor]) -> Masks:
        """Masks that keep everything."""
        return cls({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({self.num_kept} of {self.num_weights} weights in {len(self)} layers kept)"

    @property
    def num_weights(self) -> int:
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def num_kept(self) -> int:
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the covered weights that is removed."""
        return 1 - self.num_kept / self.num_weights

    def empty_layers(self) -> list[str]:
        """Names of the weights of which nothing is kept."""
        return [name for name, mask in self._masks.items() if not mask.any()]

    def check(self, sparsity: float, *, allow_empty: bool = False) -> Masks:
        """Self, after checking that the requested sparsity is met and that no layer is empty."""
        # One weight of tolerance: the number of removed weights is a whole number.
        assert abs(self.sparsity - sparsity) * self.num_weights <= 1, f"requested {sparsity}, achieved {self.sparsity}"
        return self.check_layers(allow_empty=allow_empty)

    def check_layers(self, *, allow_empty: bool = False) -> Masks:
        """Self, after checking that no layer is empty."""
        empty = self.empty_layers()
        if empty and not allow_empty:
            raise ValueError(
                f"at sparsity {self.sparsity:.4g} nothing is left of {', '.join(empty)}: choose a lower sparsity, or "
                "set allow_empty (safe only where a shortcut bypasses the layer)"
            )
        return self

    def attach(self, model: nn.Module) -> contextlib.ExitStack:
        """Zero the pruned weights of `model` and keep their gradients at zero until the returned stack is closed.

        With a new element-wise optimiser, the weights then stay exactly zero under momentum, weight decay and gradient
        averaging. No multiplication by the mask is needed in each step.
        """
        parameters = dict(model.named_parameters())
        unknown = [name for name in self._masks if name not in parameters]
        if unknown:
            raise ValueError(f"the masks name {', '.join(unknown)}, which {type(model).__name__} does not have")
        hooks = contextlib.ExitStack()
        for name, mask in self._masks.items():
            parameter = parameters[name]
            if parameter.shape != mask.shape:
                raise ValueError(f"{name} has shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}")
            with torch.no_grad():
                # In the weight's memory format (channels_last, for example): a masked gradient in another format is
                # slow to compute, and autograd would copy it back.
                mask = torch.empty_like(parameter, dtype=torch.bool).copy_(mask)
                parameter.masked_fill_(~mask, 0)
            # where instead of a product: an overflowed gradient times 0 would be nan.
            hooks.enter_context(parameter.register_hook(lambda gradient, mask=mask: torch.where(mask, gradient, 0)))
        return hooks

    def verify(self, model: nn.Module) -> None:
        """ValueError that names every weight with a pruned entry that is not exactly zero."""
        parameters = dict(model.named_parameters())
        wrong = [
            f"{name} ({count})"
            for name, mask in self._masks.items()
            if (count := int(parameters[name].detach()[~mask.to(parameters[name].device)].count_nonzero()))
        ]
        if wrong:
            raise ValueError(f"pruned weights are not zero in {', '.join(wrong)}")
