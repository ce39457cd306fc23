"""Groups of channels, the gates on them, and what a network costs without the closed ones."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from compression import channels, compaction, cost, gates, models
from compression.channels import channel_groups
from compression.dependencies import Group
from compression.gates import Gate, attach, gate_parameters, project
from compression.masks import prunable
from tests.small_networks import SMALL, Block, close_half, images, sequence, settle


def sides(group: Group) -> tuple[set[str], set[str]]:
    """(layers that make the group's channels, layers that read them)."""
    return {member.layer for member in group.producers}, {member.layer for member in group.consumers}


def test_a_sequence_has_a_group_per_convolution():
    first, second = channel_groups(sequence(), SMALL)
    assert (first.name, first.num_channels, sides(first)) == ("0", 4, ({"0"}, {"3"}))
    assert [(m.layer, m.carried) for m in first.members] == [("0", False), ("1", True), ("3", False)]
    assert (second.name, second.num_channels, sides(second)) == ("3", 5, ({"3"}, {"7"}))
    [behind_flattening] = second.consumers
    assert behind_flattening.indices == tuple(tuple(range(4 * c, 4 * c + 4)) for c in range(5))


def test_what_is_added_and_multiplied_is_one_group_and_a_grouped_convolution_moves_in_blocks():
    found = {group.name: group for group in channel_groups(Block(), SMALL)}
    assert set(found) == {"stem", "expand", "reduce"}
    assert sides(found["stem"]) == ({"stem", "project"}, {"expand", "fc"})
    assert found["stem"].num_channels == 6
    # Each half of the grouped convolution takes 4 channels and makes 2, which excite scales.
    assert found["expand"].num_channels == 2
    assert sides(found["expand"]) == ({"expand", "excite"}, {"reduce", "project"})
    assert {(m.layer, m.side): m.indices for m in found["expand"].members if m.carried} == {
        ("grouped", "in"): ((0, 1, 2, 3), (4, 5, 6, 7)),
        ("grouped", "out"): ((0, 1), (2, 3)),
    }


def test_option_a_keeps_a_group_per_stage():
    groups = {group.name: group for group in channel_groups(models.build("resnet20", 10), SMALL)}
    assert len(groups) == 9 + 3
    streams = {"conv1": 16, "stage2.0.conv2": 32, "stage3.0.conv2": 64}
    assert {name: groups[name].num_channels for name in streams} == streams
    assert "stage2.0.shortcut" in sides(groups["conv1"])[1]
    assert "stage2.0.shortcut" in sides(groups["stage2.0.conv2"])[0]
    assert sides(groups["stage1.0.conv1"]) == ({"stage1.0.conv1"}, {"stage1.0.conv2"})


class Operator(nn.Module):
    """A convolution, an operator, and a classifier."""

    def __init__(self, operator: Callable[[Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.operator = operator
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.operator(self.conv(x)).mean(dim=(2, 3)))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean(dim=(2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(self.stem(x))).mean(dim=(2, 3)))


class Added(nn.Module):
    """Adds the network's input to a convolution's output: its channels cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((x + self.stem(x)).mean(dim=(2, 3)))


def depends_on_values(x: Tensor) -> Tensor:
    return x if x.equal(x.relu()) else -x


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Operator(lambda x: x.flip(1)), "in Operator itself the operator flip "),
        (Operator(lambda x: x.cumsum(1)), "cumsum"),
        (Operator(lambda x: F.pixel_shuffle(x, 2), 1), "pixel_shuffle|view"),
        (Operator(lambda x: x[:, :2], 2), "slice"),
        (Operator(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 6), "constant_pad_nd"),
        (Operator(lambda x: x.softmax(1)), "softmax"),
        (Operator(depends_on_values), "depends on values"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ChannelShuffle(2)), nn.Flatten()), r"'0\.1' \(ChannelSh"),
        (Normalised(), r"'norm' \(LocalResponseNorm\)"),
        (Twice(), r"'conv' \(Conv2d\) runs more than once"),
        (Added(), "stem"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no convolution or linear layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "no channel that can be removed"),
        (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.Flatten()), "0 has a parametrization"),
        (nn.Conv2d(3, 4, 1), "not one tensor of logits"),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else value,
)
def test_what_channels_cannot_be_followed_through_is_named(model: nn.Module, named: str):
    with pytest.raises(ValueError, match=named):
        channel_groups(model, SMALL)
    assert model.training


def test_shared_parameters_are_refused():
    model = sequence()
    model.append(nn.Linear(7, 7))
    model.append(nn.Linear(7, 7))
    model[9].weight = model[8].weight
    with pytest.raises(ValueError, match=r"'8\.weight' and '9\.weight' are the same"):
        channel_groups(model, SMALL)


def test_images_tell_the_shape_as_well():
    assert channel_groups(sequence(), torch.zeros(7, *SMALL)) == channel_groups(sequence(), SMALL)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        channel_groups(sequence(), (3, 8))


def test_finding_groups_leaves_the_model_alone():
    model = models.build("resnet20", 10)
    before = copy.deepcopy(model.state_dict())
    channel_groups(model, SMALL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_open_gates_change_nothing_and_closed_ones_stand_for_missing_channels():
    model = settle(sequence(), SMALL)
    plain = copy.deepcopy(model)
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    assert gated.describe() == "0 4/4, 3 5/5"
    assert torch.equal(model(images(SMALL)), plain(images(SMALL)))
    with torch.no_grad():
        gated.of("0").m[1] = -0.5
        gated.of("3").m[2] = -0.5
        plain.get_parameter("3.weight")[:, 1] = 0
        plain.get_parameter("7.weight")[:, 8:12] = 0
    torch.testing.assert_close(model(images(SMALL)), plain(images(SMALL)), rtol=0, atol=1e-14)
    assert gated.describe() == "0 3/4, 3 4/5"
    assert {name: opened.tolist() for name, opened in gated.open().items()} == {
        "0": [True, False, True, True],
        "3": [True, True, False, True, True],
    }


def test_the_gradient_of_a_gate_is_that_of_gated_feature_maps():
    model = settle(sequence(), SMALL)
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    values = torch.tensor([0.25, -0.5, 0.75, -1.5], dtype=torch.float64)
    with torch.no_grad():
        gated.of("0").m.copy_(values)
    model(images(SMALL)).square().sum().backward()

    m = values.clone().requires_grad_()
    x = model[:3](images(SMALL)) * gates.gate(m).view(1, -1, 1, 1)
    x = F.conv2d(x, model.get_parameter("3.parametrizations.weight.original"), padding=1)
    model[4:](x).square().sum().backward()
    found = gated.of("0").m.grad
    assert found is not None
    assert m.grad is not None
    torch.testing.assert_close(found, m.grad, rtol=1e-12, atol=0)
    assert found[1] != 0, "a closed gate still learns"
    assert found[3] == 0, "and none far from 0"


def test_a_group_never_vanishes():
    gate = Gate(torch.tensor([-0.75, -0.25, -0.5]))
    assert gate().tolist() == [0, 1, 0]
    assert torch.autograd.grad(gate().sum(), gate.m)[0].tolist() == [0.25, 0.75, 0.5]
    assert Gate(torch.tensor([0.0, -1.0]))().tolist() == [1, 0]
    assert Gate(torch.tensor([0.0, 1.0]))().tolist() == [0.5, 1]


def test_gates_start_open_or_as_the_authors_do():
    groups = channel_groups(sequence(), SMALL)
    assert all((m == 0.5).all() for m in attach(sequence(), groups, SMALL).parameters())
    [first, _] = attach(sequence(), groups, SMALL, start="random", seed=3).parameters()
    [again, _] = attach(sequence(), groups, SMALL, start="random", seed=3).parameters()
    [other, _] = attach(sequence(), groups, SMALL, start="random", seed=4).parameters()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 < float(first.detach().abs().max()) < 0.01
    with pytest.raises(ValueError, match="'open' or 'random'"):
        attach(sequence(), groups, SMALL, start="closed")  # type: ignore[arg-type]


def test_gates_are_attached_once_and_to_plain_layers():
    model = sequence()
    groups = channel_groups(model, SMALL)
    attach(model, groups, SMALL)
    with pytest.raises(ValueError, match="gates already"):
        attach(model, groups, SMALL)
    normed = sequence()
    parametrizations.weight_norm(normed[3])
    with pytest.raises(ValueError, match="3 of Sequential has a parametrization"):
        attach(normed, groups, SMALL)


def test_gate_parameters_are_the_gates_alone():
    model = models.build("resnet20", 10)
    assert gate_parameters(model) == []
    plain = {id(parameter) for parameter in model.parameters()}
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    assert gates.of(model) is gated
    own = gate_parameters(model)
    assert sum(len(m) for m in own) == 9 * 16 // 3 + 9 * 32 // 3 + 9 * 64 // 3 + 16 + 32 + 64
    assert {id(parameter) for parameter in model.parameters()} == plain | {id(m) for m in own}


def test_a_gated_models_state_names_each_gate_once_and_comes_back():
    model = settle(models.build("resnet20", 10), SMALL)
    close_half(model, SMALL)
    state = model.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state), "safetensors refuses shared tensors"
    assert sum("gate" in name for name in state) == 12
    other = models.build("resnet20", 10).double().eval()
    attach(other, channel_groups(other, SMALL), SMALL)
    other.load_state_dict(state)
    assert torch.equal(other(images(SMALL)), model(images(SMALL)))


def test_copies_of_a_gated_model_have_gates_of_their_own():
    model = settle(models.build("resnet20", 10), SMALL)
    gated = close_half(model, SMALL)
    other = copy.deepcopy(model)
    expected = other(images(SMALL))
    with torch.no_grad():
        for m in gated.parameters():
            m.fill_(0.5)
    assert torch.equal(other(images(SMALL)), expected)
    assert not torch.equal(model(images(SMALL)), expected)
    gates.remove(other)
    torch.testing.assert_close(other(images(SMALL)), expected, rtol=1e-12, atol=1e-12)
    assert model(images(SMALL)).isfinite().all(), "taking gates off a copy leaves the other's layers whole"


def test_removing_gates_leaves_plain_layers():
    model = settle(models.build("resnet20", 10), SMALL)
    names = [name for name, _ in model.named_parameters()]
    types = [type(module) for module in model.modules()]
    gated = close_half(model, SMALL)
    expected = model(images(SMALL))
    closed = ~gated.open()["stage1.0.conv1"]
    gates.remove(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert [type(module) for module in model.modules()] == types
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(images(SMALL)), expected, rtol=1e-12, atol=1e-12)
    weight = model.get_parameter("stage1.0.conv2.weight")
    assert not weight[:, closed].any()
    assert weight[:, ~closed].any()
    gates.remove(model)
    assert list(prunable(model)) == [name for name in names if name in prunable(model)]


def test_a_half_open_gate_is_not_removed():
    model = settle(sequence(), SMALL)
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    with torch.no_grad():
        gated.of("3").m[1] = 0
    with pytest.raises(ValueError, match="gates of 3 are at exactly 0"):
        compaction.compact(model, SMALL)


def test_costs_by_hand():
    model = sequence(bias=True)
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    with torch.no_grad():
        gated.of("0").m.copy_(torch.tensor([0.5, 0.5, 0.5, -0.5]))
        gated.of("3").m.copy_(torch.tensor([0.5, 0.5, -0.25, -0.5, -0.75]))
    found = gated.costs()
    # 3 and 2 channels: 64 positions of 3x3 kernels, 4 positions for the classifier.
    assert found.macs.item() == 64 * 9 * (3 * 3 + 3 * 2) + 4 * 2 * 7
    assert found.parameters.item() == 3 * 27 + 2 * 3 + (3 * 9 * 2 + 2) + (4 * 2 * 7 + 7)
    assert found.macs.dtype is torch.float64
    found.macs.backward()
    first, second = gated.of("0").m.grad, gated.of("3").m.grad
    assert first is not None
    assert second is not None
    assert first.tolist() == [64 * 9 * (3 + 2) * 0.5] * 4
    torch.testing.assert_close(second, (64 * 9 * 3 + 28) * torch.tensor([0.5, 0.5, 0.75, 0.5, 0.25]))
    assert gated.reachable("macs") == (64 * 9 * (3 + 1) + 28, 64 * 9 * (12 + 20) + 140)
    assert gated.reachable("parameters") == (27 + 2 + 9 + 1 + 28 + 7, cost.count(sequence(bias=True), SMALL).params)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vgg16_tiny"])
def test_open_gates_cost_the_whole_network(name: str):
    model = models.build(name, 10)
    counted = cost.count(model, (3, 32, 32))
    gated = attach(model, channel_groups(model, (3, 32, 32)), (3, 32, 32))
    assert gated.reachable("macs")[1] == counted.macs
    assert gated.reachable("parameters")[1] == counted.params


def test_projecting_moves_the_gates_nearest_to_zero():
    model = sequence()
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    first, second = torch.tensor([0.5, 0.1, 0.4, 0.3]), torch.tensor([0.9, -0.2, -0.3, 0.05, 0.2])

    def reset() -> None:
        with torch.no_grad():
            gated.of("0").m.copy_(first)
            gated.of("3").m.copy_(second)

    def macs(a: int, b: int) -> int:
        return 576 * (3 * a + a * b) + 28 * b

    reset()
    assert gated.costs().macs.item() == macs(4, 3)
    assert project(gated, "macs", macs(4, 3)) == 0
    assert torch.equal(gated.of("3").m.detach(), second)
    assert project(gated, "macs", macs(3, 2)) == 2
    assert gated.of("0").m.tolist() == pytest.approx([0.5, -1e-3, 0.4, 0.3])
    assert gated.of("3").m.tolist() == pytest.approx([0.9, -0.2, -0.3, -1e-3, 0.2])
    reset()
    assert project(gated, "macs", macs(4, 4)) == 1
    assert gated.of("3").m.tolist() == pytest.approx([0.9, 1e-3, -0.3, 0.05, 0.2])
    assert project(gated, "macs", macs(1, 1)) == 6
    assert gated.describe() == "0 1/4, 3 1/5"
    assert gated.of("0").is_open().tolist() == [True, False, False, False]
    assert project(gated, "parameters", gated.reachable("parameters")[1]) == 7


def test_projecting_fills_a_gap_with_smaller_channels():
    model = sequence()
    gated = attach(model, channel_groups(model, SMALL), SMALL)
    with torch.no_grad():
        gated.of("0").m.copy_(torch.tensor([0.5, -0.1, -0.2, -0.3]))
        gated.of("3").m.copy_(torch.tensor([0.9, -0.4, -0.5, -0.6, -0.7]))
    # The next by rank is a channel of the first layer, which would cost 576 * (3 + 1) more than the 604 that are left.
    assert project(gated, "macs", 576 * (3 + 2) + 28 * 2) == 1
    assert gated.describe() == "0 1/4, 3 2/5"
    assert gated.of("3").m.tolist() == pytest.approx([0.9, 1e-3, -0.5, -0.6, -0.7])


@pytest.mark.parametrize(("of", "share"), [("macs", 0.6047), ("macs", 0.05), ("parameters", 0.6723)])
def test_projecting_meets_a_budget_within_two_percent(of: gates.CostName, share: float):
    model = settle(models.build("resnet20", 10), SMALL)
    gated = close_half(model, (3, 32, 32))
    target = share * gated.reachable(of)[1]
    project(gated, of, target)
    counted = cost.count(compaction.compact(model), (3, 32, 32))
    assert {"macs": counted.macs, "parameters": counted.params}[of] == pytest.approx(target, rel=0.02)


def test_a_budget_out_of_reach_is_refused():
    gated = attach(sequence(), channel_groups(sequence(), SMALL), SMALL)
    least, most = gated.reachable("macs")
    for target in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"from {least} with one channel in each group to {most}"):
            gated.check_target("macs", target)
        with pytest.raises(ValueError, match="cannot be reached"):
            project(gated, "macs", target)
    with pytest.raises(ValueError, match=r"within 2%.*nearest cost"):
        project(gated, "macs", least + 300)
    assert gated.describe() == "0 4/4, 3 5/5"


def backward(run: Callable[[Tensor], Tensor], model: nn.Module) -> list[Tensor]:
    """Gradients of the gates from a loss that has a cost in it."""
    gated = gates.of(model)
    assert gated is not None
    (run(images(SMALL)).square().sum() + gated.costs().macs / 1e6).backward()
    found = [m.grad for m in gated.parameters() if m.grad is not None]
    assert len(found) == len(gated.groups)
    assert all(gradient.any() for gradient in found)
    return found


def test_gates_learn_under_ddp(tmp_path: Path):
    model = settle(models.build("resnet20", 10), SMALL)
    close_half(model, SMALL)
    single = copy.deepcopy(model)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = backward(nn.parallel.DistributedDataParallel(model), model)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, backward(single, single), rtol=1e-12, atol=1e-12)


def test_gates_learn_when_compiled():
    model = settle(sequence(), SMALL)
    close_half(model, SMALL)
    single = copy.deepcopy(model)
    found = backward(torch.compile(model, backend="aot_eager", fullgraph=True), model)
    torch.testing.assert_close(found, backward(single, single), rtol=1e-12, atol=1e-12)


def test_the_proof_notices_a_wrong_group():
    model = sequence()
    [first, second] = channel_groups(model, SMALL)
    [produced, _, consumed] = first.members
    with pytest.raises(ValueError, match="made by 0"):
        channels.prove(model, [Group("0", (produced, consumed)), second], images(SMALL))
    backwards = dataclasses.replace(consumed, indices=consumed.indices[::-1])
    with pytest.raises(ValueError, match="made by 0"):
        channels.prove(model, [Group("0", (*first.members[:2], backwards)), second], images(SMALL))
