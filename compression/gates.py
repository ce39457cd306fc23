"""PDD's channel gates (Dan et al., Cognitive Computation 16, 2024, doi 10.1007/s12559-024-10350-9).

A gate is 0 or 1. Its parameter m is trained with a surrogate gradient (the polynomial of Bi-Real Net, arXiv
1808.00278). Each channel of a dependency group has a gate where it is read, so that `compact` removes closed channels.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression import slicing
from compression.channels import example_images
from compression.cost import quadratic_costs
from compression.dependencies import Group, Member
from compression.models.resnet_cifar import ChannelShortcut

Start = Literal["open", "random"]
CostName = Literal["macs", "parameters"]

START = 0.5
"""m of a gate that starts open: half way between 0, where it closes, and 1, where its gradient vanishes."""
NAME = "channel_gates"
"""Attribute of a gated model that holds its `Gates`."""
EDGE = 1e-3
"""Smallest |m| after `project`."""
FACTOR = "gate_factor"
"""Attribute of a gated ChannelShortcut that holds the factor of its inputs."""


def gate(m: Tensor) -> Tensor:
    """(sign(m) + 1) / 2: 1 where m > 0, 0 where m < 0, 0.5 at exactly 0. Its derivative is taken as max(0, 1 - |m|)."""
    inside = m.clamp(-1, 1)
    smooth = inside - inside * inside.abs() / 2
    return (m.detach().sign() + 1) / 2 + (smooth - smooth.detach())


class Gate(nn.Module):
    """The gates of one group: () -> (num_channels,). The gate with the largest m is always open: no group vanishes."""

    def __init__(self, m: Tensor) -> None:
        super().__init__()
        self.m = nn.Parameter(m)

    def forward(self) -> Tensor:
        values = gate(self.m)
        largest = torch.arange(len(self.m), device=self.m.device) == self.m.detach().argmax()
        return torch.where(largest, values - values.detach() + 1, values)

    def is_open(self) -> Tensor:
        """bool (num_channels,), True where the gate is open."""
        with torch.no_grad():
            return self() > 0


class _InputFactor(nn.Module):
    """Multiplies (N, inputs, ...) by the gates of some inputs of a layer, and by 1 for the others."""

    index: Tensor | None

    def __init__(self, of: Gate, member: Member, num_inputs: int) -> None:
        super().__init__()
        # In a tuple the gate is no submodule: the model holds each gate once, and a copy of the model its own copy.
        self._gate = (of,)
        index = torch.full((num_inputs,), len(of.m))
        for channel, places in enumerate(member.indices):
            index[list(places)] = channel
        identity = torch.equal(index, torch.arange(len(of.m)))
        self.register_buffer("index", None if identity else index.to(of.m.device), persistent=False)

    def forward(self, gated: Tensor) -> Tensor:
        values = self._gate[0]()
        if self.index is not None:
            values = torch.cat([values, values.new_ones(1)])[self.index]
        return gated * values.view(1, -1, *[1] * (gated.dim() - 2))


def _gate_inputs(shortcut: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Forward pre-hook of a ChannelShortcut, which has no weight to gate. Stateless, so that copies are independent."""
    return shortcut.get_submodule(FACTOR)(inputs[0])


class Costs(NamedTuple):
    """The costs without the closed channels, as of `cost.count`: float64 scalars, differentiable by the gates."""

    macs: Tensor
    parameters: Tensor


class Gates(nn.Module):
    """All gates of a model. `attach` creates them; the model holds them as `channel_gates`."""

    macs: Tensor
    parameter_counts: Tensor

    def __init__(
        self,
        gates: dict[str, Gate],
        groups: Sequence[Group],
        input_shape: Sequence[int],
        quadratic: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.input_shape = tuple(input_shape)
        self.gates = nn.ModuleDict({name.replace(".", "/"): gate for name, gate in gates.items()})
        # Each cost is s'Qs, where s = (1, open channels of the first group, of the second...).
        self.register_buffer("macs", quadratic[0], persistent=False)
        self.register_buffer("parameter_counts", quadratic[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x  # an nn.Sequential runs all its submodules

    def of(self, group: Group | str) -> Gate:
        """The gates of a group, given as the group or its name."""
        gate = self.gates[(group if isinstance(group, str) else group.name).replace(".", "/")]
        assert isinstance(gate, Gate)
        return gate

    def open(self) -> dict[str, Tensor]:
        """Group name -> bool (num_channels,), True where the gate is open."""
        return {group.name: self.of(group).is_open() for group in self.groups}

    def num_open(self, group: Group | str) -> int:
        return int(self.of(group).is_open().sum())

    def costs(self) -> Costs:
        """Costs as functions of the gates, for a penalty. Does not synchronise the device."""
        return self.costs_of(torch.stack([self.of(group)().double().sum() for group in self.groups]))

    def costs_of(self, num_open: Tensor) -> Costs:
        """Costs for given numbers of open channels (num_groups,)."""
        s = torch.cat([num_open.new_ones(1), num_open])
        return Costs(s @ self.macs @ s, s @ self.parameter_counts @ s)

    def reachable(self, of: CostName = "macs") -> tuple[int, int]:
        """The lowest cost (one channel in each group) and the highest (all channels)."""
        sizes = torch.tensor([group.num_channels for group in self.groups], dtype=torch.float64).to(self.macs.device)
        least, most = (self.costs_of(num) for num in (torch.ones_like(sizes), sizes))
        return round(float(getattr(least, of))), round(float(getattr(most, of)))

    def check_target(self, of: CostName, target: float) -> None:
        """ValueError unless a cost of `target` can be reached. To be called before training."""
        least, most = self.reachable(of)
        if not least <= target <= most:
            raise ValueError(
                f"a target of {target:.0f} {of} cannot be reached: from {least} with one channel in each group to "
                f"{most} with all channels; choose a target between them"
            )

    def describe(self) -> str:
        """The number of open channels of each group, as text."""
        return ", ".join(f"{group.name} {self.num_open(group)}/{group.num_channels}" for group in self.groups)


def attach(
    model: nn.Module,
    groups: Sequence[Group],
    input_shape: Sequence[int] | Tensor,
    *,
    start: Start = "open",
    seed: int = 0,
) -> Gates:
    """Give `model`, in place, a gate for each channel of `groups` (see `channels.channel_groups`).

    The gates multiply the weights that read a channel, which equals gating the inputs and is cheaper. Attach before the
    optimiser is created: a gated weight becomes `parametrizations.weight.original`.
    start: "open": all m are 0.5; "random", as in the authors' code: m = 0.001 N(0, 1) from `seed`, half of them closed.
    """
    if hasattr(model, NAME):
        raise ValueError(f"{type(model).__name__} has gates already: remove them first (compaction.compact does)")
    if start not in ("open", "random"):
        raise ValueError(f"start must be 'open' or 'random', not {start!r}")
    taken = [name for name, layer in model.named_modules() if parametrize.is_parametrized(layer)]
    if taken:
        raise ValueError(f"{', '.join(taken)} of {type(model).__name__} has a parametrization already: remove it first")
    images = example_images(model, input_shape)
    quadratic = quadratic_costs(model, groups, images)
    example = next(model.parameters())
    draw = torch.Generator().manual_seed(seed)
    layers = dict(model.named_modules())
    gates = {}
    for group in groups:
        noise = torch.randn(group.num_channels, generator=draw, dtype=torch.float64)
        m = 0.001 * noise if start == "random" else torch.full_like(noise, START)
        gates[group.name] = Gate(m.to(example.device, example.dtype))
        for member in group.consumers:
            layer = layers[member.layer]
            factor = _InputFactor(gates[group.name], member, slicing.size(layer, member))
            if isinstance(layer, ChannelShortcut):
                layer.add_module(FACTOR, factor)
                layer.register_forward_pre_hook(_gate_inputs)
            else:
                parametrize.register_parametrization(layer, "weight", factor)
    handle = Gates(gates, groups, images.shape[1:], (quadratic[0].to(example.device), quadratic[1].to(example.device)))
    model.add_module(NAME, handle)
    return handle


def of(model: nn.Module) -> Gates | None:
    """The gates attached to `model`, if any."""
    return getattr(model, NAME, None)


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The m of every gate, for a separate parameter group without weight decay."""
    handle = of(model)
    return [] if handle is None else list(handle.parameters())


def remove(model: nn.Module) -> None:
    """Remove the gates from `model`, in place. Weights that read closed channels become zero; the others stay."""
    if (handle := of(model)) is None:
        return
    opened = handle.open()
    half = [group.name for group in handle.groups if ((values := handle.of(group)()) * (1 - values)).any()]
    if half:
        raise ValueError(f"gates of {', '.join(half)} are at exactly 0, half open: call `project` or change them first")
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            _remove_gates(layer)
        if isinstance(layer, ChannelShortcut) and hasattr(layer, FACTOR):
            delattr(layer, FACTOR)
            for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _gate_inputs]:
                del layer._forward_pre_hooks[key]
    delattr(model, NAME)
    slicing.stop_reading(model, handle.groups, opened)


def _remove_gates(layer: nn.Module) -> None:
    # Not with remove_parametrizations: it removes the property from the class, which copies of the layer share.
    factored = layer.get_parameter("parametrizations.weight.original")
    weight = nn.Parameter(layer.weight.detach(), factored.requires_grad)  # type: ignore[union-attr, operator]
    layer.__class__ = type(layer).__mro__[1]
    del layer.parametrizations
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update({"weight": weight, **others})


def project(gates: Gates, of: CostName, target: float, *, tolerance: float = 0.02) -> int:
    """Open or close the gates nearest to 0 until the cost is as near to `target` as possible; returns how many changed.

    If the next channel is too large, smaller channels after it are opened. Every group keeps its largest gate.
    target: MACs or parameters of the network without its closed channels.
    ValueError if the target is out of reach, or if single channels are so large that the cost differs from the target
    by more than `tolerance` of it.
    """
    gates.check_target(of, target)
    sizes = [group.num_channels for group in gates.groups]
    m = torch.cat([gates.of(group).m.detach().double().cpu() for group in gates.groups])
    number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    always = torch.cat([torch.arange(size) == part.argmax() for size, part in zip(sizes, m.split(sizes), strict=True)])
    # Gates open in this order: first those that are always open, then by decreasing m.
    order = torch.argsort(torch.where(always, torch.inf, m), descending=True, stable=True)

    def cost(opened: Tensor) -> float:
        num_open = torch.bincount(number[opened], minlength=len(sizes)).double()
        return float(getattr(gates.costs_of(num_open.to(gates.macs.device)), of))

    low, high = len(sizes), len(m)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(order[:middle]) <= target else (low, middle - 1)
    opened = torch.zeros(len(m), dtype=torch.bool)
    opened[order[:low]] = True
    if low < len(m) and cost(order[: low + 1]) - target < target - cost(order[:low]):
        opened[order[low]] = True
    elif target - cost(opened) > tolerance * target:
        for place in order[~opened[order]].tolist():
            before = abs(cost(opened) - target)
            opened[place] = True
            if abs(cost(opened) - target) >= before:
                opened[place] = False
    if abs(cost(opened) - target) > tolerance * target:
        raise ValueError(
            f"{target:.0f} {of} cannot be met within {tolerance:.0%}: single channels are too large; the nearest cost "
            f"is {cost(opened):.0f}"
        )
    was_open = torch.cat([gates.of(group).is_open().cpu() for group in gates.groups])
    new = torch.where(opened, m.clamp(min=EDGE), m.clamp(max=-EDGE))
    for group, values in zip(gates.groups, new.split(sizes), strict=True):
        with torch.no_grad():
            gates.of(group).m.copy_(values)
    return int((opened != was_open).sum())
