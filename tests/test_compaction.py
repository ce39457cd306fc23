"""Compaction: the small network's outputs are the pruned one's, and nothing else of it is other than it was."""

from __future__ import annotations

import copy
import os
import statistics
import time
from operator import truediv

import pytest
import torch
from torch import Tensor, nn

from compression import channels, compaction, cost, gates, models
from compression.channels import TOLERANCE, difference
from compression.compaction import compact
from compression.masks import Masks, prunable
from compression.models.resnet_cifar import ChannelShortcut
from tests.small_networks import SMALL, Block, close_half, half_of_the_filters, images, sequence, settle

NETWORKS = {
    "resnet20": 16,
    "resnet56": 8,
    "resnet18": 16,
    "resnet50": 16,
    "vgg11": 8,
    "vgg16": 8,
    "vgg19": 8,
    "vgg11_mlp": 8,
    "mobilenet_v2": 32,
    "timm/regnetx_002": 32,  # convolutions in groups
    "timm/mobilenetv3_small_050": 32,  # squeeze and excitation
    "timm/resnet14t": 32,  # average pools on shortcuts
    "timm/resnet50_gn": 32,  # GroupNorm
}
"""Architecture -> image size."""


def random_weights(model: nn.Module, sparsity: float, seed: int = 0) -> Masks:
    draw = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(weight.shape, generator=draw) >= sparsity for n, weight in prunable(model).items()})


@pytest.mark.parametrize("pruned", ["gates", "filters", "weights"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compacted_network_equals_the_pruned_one(name: str, pruned: str):
    shape = (3, NETWORKS[name], NETWORKS[name])
    torch.manual_seed(0)
    model = settle(models.build(name, 10), shape)
    gated = None
    if pruned == "gates":
        gated = close_half(model, shape)
    elif pruned == "filters":
        half_of_the_filters(model).attach(model).close()
    else:
        random_weights(model, 0.98).attach(model).close()
    before = copy.deepcopy(model.state_dict())
    small = compact(model, shape)
    with torch.no_grad():
        assert difference(model(images(shape)), small(images(shape))) <= TOLERANCE
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    counted = cost.count(small, shape)
    if gated is not None:
        assert counted.macs == gated.costs().macs.item()
        assert counted.params == gated.costs().parameters.item()
        assert counted.macs < 0.4 * gated.reachable("macs")[1]
    elif pruned == "filters":
        # A convolution in groups keeps a group for one live filter, a residual stream a channel for one live layer.
        assert counted.macs < 0.95 * cost.count(model, shape).macs


@pytest.mark.parametrize("gated", [True, False])
def test_a_compacted_network_has_nothing_left_to_remove(gated: bool):
    model = settle(models.build("resnet20", 10), SMALL)
    if gated:
        close_half(model, SMALL)
    else:
        half_of_the_filters(model).attach(model).close()
    small = compact(model, SMALL)
    again = compact(small, SMALL)
    assert vars(again)["arch"] == vars(small)["arch"]
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())


def width(model: nn.Module, name: str) -> int:
    return len(model.get_parameter(f"{name}.weight"))


@torch.no_grad()
def test_dead_channels_are_removed_through_and_through():
    model = settle(sequence(), SMALL)
    model.get_parameter("7.weight")[:, 4:8] = 0  # nobody reads channel 1 of the second convolution,
    model.get_parameter("3.weight")[[0, 2, 3, 4], 2] = 0  # and it alone reads channel 2 of the first
    small = compact(model, SMALL)
    assert [width(small, name) for name in "0137"] == [3, 3, 4, 7]
    assert torch.equal(small.get_parameter("0.weight"), model.get_parameter("0.weight")[[0, 1, 3]])
    assert torch.equal(small.get_parameter("7.weight"), model.get_parameter("7.weight")[:, [0, 1, 2, 3, *range(8, 20)]])
    assert small.get_submodule("3").bias is None
    conv, norm, reader = (small.get_submodule(name) for name in "013")
    assert (conv.out_channels, norm.num_features, reader.in_channels) == (3, 3, 3)


@torch.no_grad()
def test_constants_go_into_the_bias_where_nothing_is_padded():
    model = settle(sequence(padding=0), SMALL)
    model.get_parameter("0.weight")[1:3] = 0
    model.get_parameter("1.bias")[:] = 0.75
    small = compact(model, SMALL)
    assert [width(small, name) for name in "01"] == [2, 2]
    constants = model[:3](images(SMALL))[0, 1:3, 0, 0]
    assert constants.min() > 0.1
    expected = torch.einsum("oikl,i->o", model.get_parameter("3.weight")[:, 1:3], constants)
    torch.testing.assert_close(small.get_parameter("3.bias"), expected)


@torch.no_grad()
def test_constants_are_merged_where_zeros_are_padded():
    model = settle(sequence(), SMALL)
    model.get_parameter("0.weight")[1:] = 0
    model.get_parameter("1.bias")[:] = torch.tensor(
        [0.1, 0.75, 1.5, -3]
    )  # the last is closed by the ReLU: a constant of 0
    model.get_buffer("1.running_mean").zero_()
    small = compact(model, SMALL)
    assert [width(small, name) for name in "01"] == [2, 2]
    merged = model.get_parameter("3.weight")[:, 2] + 0.5 * model.get_parameter("3.weight")[:, 1]
    torch.testing.assert_close(small.get_parameter("3.weight")[:, 1], merged)
    assert small.get_submodule("3").bias is None


@torch.no_grad()
def test_constants_go_into_the_classifiers_bias():
    model = settle(sequence(bias=True), SMALL)
    model.get_parameter("3.weight")[2] = 0
    model.get_parameter("3.bias")[2] = 2
    small = compact(model, SMALL)
    assert width(small, "3") == 4
    expected = model.get_parameter("7.bias") + 2 * model.get_parameter("7.weight")[:, 8:12].sum(dim=1)
    torch.testing.assert_close(small.get_parameter("7.bias"), expected)


@torch.no_grad()
def test_a_layer_of_which_nothing_is_left_keeps_one_channel():
    model = settle(models.build("resnet20", 10), SMALL)
    model.get_parameter("stage1.1.conv1.weight").zero_()
    model.get_parameter("stage2.2.conv2.weight").zero_()
    small = compact(model, SMALL)
    assert width(small, "stage1.1.conv1") == 1
    assert width(small, "stage2.2.conv1") == 1
    assert width(small, "stage2.2.conv2") == 32, "the stream goes on"
    dead = settle(sequence(), SMALL)
    dead.get_parameter("0.weight").zero_()
    small = compact(dead, SMALL)
    assert [width(small, name) for name in "013"] == [1, 1, 5], "a constant behind zero padding depends on the position"
    torch.testing.assert_close(small(images(SMALL)), dead(images(SMALL)), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_convolutions_in_groups_lose_whole_groups():
    model = settle(Block(), SMALL)
    model.get_parameter("grouped.weight")[2:] = 0
    model.get_parameter("grouped.bias")[2:] = 0
    small = compact(model, SMALL)
    assert small.get_submodule("grouped").groups == 1
    assert [width(small, name) for name in ("expand", "grouped", "excite", "project")] == [4, 2, 2, 6]
    one = settle(Block(), SMALL)
    one.get_parameter("grouped.weight")[2] = 0
    one.get_parameter("grouped.bias")[2] = 0
    assert compact(one, SMALL).get_submodule("grouped").groups == 2


@torch.no_grad()
def test_a_relu_that_happens_to_be_closed_is_not_dead():
    # Never open on any image that is likely to be tried, but its filter is there.
    model = settle(sequence(), SMALL)
    model.get_parameter("1.bias")[2] = -1e3
    assert [width(compact(model, SMALL), name) for name in "01"] == [4, 4]


def test_option_a_streams_are_sliced_with_their_index_maps():
    model = settle(models.build("resnet20", 10), SMALL)
    gated = gates.attach(model, channels.channel_groups(model, SMALL), SMALL)
    with torch.no_grad():
        gated.of("conv1").m[[0, 5]] = -0.5
        gated.of("stage2.0.conv2").m[[2, 8, 9, 31]] = -0.5
    small = compact(model, SMALL)
    shortcut = small.get_submodule("stage2.0.shortcut")
    assert isinstance(shortcut, ChannelShortcut)
    # Channel c of 16 landed in 8 + c of 32: 0 and 5 are gone, and so are the places of 0 and 1.
    assert shortcut.out_channels == 28
    assert shortcut.source.tolist() == list(range(1, 14))
    assert shortcut.target.tolist() == [7, 8, 9, *range(11, 21)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision_memory_format_and_modes_are_the_models(dtype: torch.dtype):
    model = settle(models.build("resnet20", 10), SMALL).to(dtype).to(memory_format=torch.channels_last)  # type: ignore
    half_of_the_filters(model).attach(model).close()
    model.train()
    model.get_submodule("stage1").eval()
    model.get_parameter("fc.weight").requires_grad_(False)
    model.get_parameter("fc.bias").requires_grad_(False)
    model(images(SMALL).to(dtype)).sum().backward()
    small = compact(model, SMALL)
    assert {tensor.dtype for tensor in small.state_dict().values()} == {dtype, torch.int64}
    weight = small.get_parameter("stage1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert small.training
    assert not small.get_submodule("stage1.0.bn1").training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(parameter.grad is None for parameter in small.parameters())
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in model.named_parameters()]
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert all(parameter.is_contiguous() for parameter in compact(model, SMALL).parameters())


def test_a_network_that_lost_nothing_stays_equal():
    model = settle(models.build("resnet20", 10), SMALL).float()
    small = compact(model, torch.zeros(1, *SMALL))
    assert vars(small)["arch"] == vars(model)["arch"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in small.state_dict().items())


def test_the_outputs_are_compared_before_a_network_is_returned(monkeypatch: pytest.MonkeyPatch):
    model = settle(sequence(padding=0), SMALL)
    with torch.no_grad():
        model.get_parameter("0.weight")[1] = 0
        model.get_parameter("1.bias")[1] = 0.75

    def wrong(layer: nn.Module, values: Tensor) -> None:
        """Forgets the constants."""

    monkeypatch.setattr(compaction.slicing, "add_bias", wrong)
    with pytest.raises(ValueError, match=r"gives different outputs for images of .* pixels: they differ by 0"):
        compact(model, SMALL)


SIZES = {"resnet18_small": 32, "mobilenet_v2": 32, "vgg16": 64, "resnet18": 64, "timm/mobilenetv3_small_050": 32}
"""Architecture -> the size at which it is compacted: the last maps are smaller than a kernel, or have no inside."""


@pytest.mark.parametrize("kept", [0.003, 0.03])
@pytest.mark.parametrize("name", SIZES)
def test_a_compacted_network_equals_the_pruned_one_at_every_size(name: str, kept: float):
    torch.manual_seed(0)
    shape = (3, SIZES[name], SIZES[name])
    model = settle(models.build(name, 10), shape)
    random_weights(model, 1 - kept).attach(model).close()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    small = compact(model, shape)
    for size in (SIZES[name], 96, 127):
        x = images((3, size, size))
        with torch.no_grad():
            assert difference(model(x), small(x)) <= TOLERANCE, size


def test_a_kernel_counts_whole_although_a_small_map_reads_only_its_centre():
    """On the 1 x 1 map of a 3 x 3 image no corner of the second kernel meets a pixel; on a larger one it does."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    with torch.no_grad():
        model.get_parameter("1.weight")[:, 1] = 0
        model.get_parameter("1.weight")[0, 1, 0, 0] = 1
    small = compact(model, (3, 3, 3))
    assert small.get_submodule("0").out_channels == 4
    x = images((3, 9, 9))
    with torch.no_grad():
        assert difference(model(x), small(x)) <= TOLERANCE


def grouped(groups: int) -> nn.Sequential:
    """Two convolutions with GroupNorm, for images of any size."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(groups, 8), nn.ReLU()
    second = nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(groups, 12), nn.ReLU()
    return settle(nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)), SMALL)


@pytest.mark.parametrize(("groups", "left"), [(1, (1, 8)), (2, (2, 8)), (4, (3, 6))])
def test_groups_of_a_group_norm_are_removed_whole(groups: int, left: tuple[int, int]):
    """Its statistics are of a whole group: without one of its channels the others would change."""
    model = grouped(groups)
    with torch.no_grad():
        model.get_parameter("0.weight")[:3] = 0  # with 4 groups of 2: the first group, and half of the second
        model.get_parameter("1.bias")[:2] = -1
    small = compact(model, SMALL)
    assert (small.get_submodule("1").num_groups, width(small, "1")) == left
    for size in (SMALL[1], 40):
        x = images((3, size, size))
        with torch.no_grad():
            assert difference(model(x), small(x)) <= TOLERANCE


def test_without_gates_the_input_shape_must_be_given():
    with pytest.raises(ValueError, match=r"give the input_shape \(C, H, W\) of Sequential"):
        compact(sequence())


def test_what_cannot_be_compacted_is_named():
    with pytest.raises(ValueError, match=r"'0' \(ConvTranspose2d\) has a parameter weight"):
        compact(nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 8), nn.Flatten()), SMALL)


WIDTHS = (35, 69, 195, 96, 300, 109, 227, 368)
"""What PDD's authors kept of VGG-11."""


@torch.inference_mode()
def seconds(networks: list[nn.Module], x: Tensor, rounds: int) -> list[list[float]]:
    """Seconds of each network in each round, one after the other."""
    found: list[list[float]] = [[] for _ in networks]
    for _ in range(rounds):
        for network, times in zip(networks, found, strict=True):
            start = time.perf_counter()
            network(x)
            times.append(time.perf_counter() - start)
    return [times[1:] for times in found]


@pytest.mark.alone
def test_the_compacted_vgg11_is_as_fast_as_one_built_so():
    torch.manual_seed(0)
    dense = models.build("vgg11_mlp", 10)
    direct = models.build("vgg11_mlp", 10, widths=list(WIDTHS)).eval()
    gated_model = copy.deepcopy(dense)
    gated = gates.attach(gated_model, channels.channel_groups(dense, (3, 32, 32)), (3, 32, 32))
    with torch.no_grad():
        for group, kept in zip(gated.groups, WIDTHS, strict=False):
            gated.of(group).m[kept:] = -0.5
    small = compact(gated_model).eval()
    assert cost.count(small, (3, 32, 32)) == cost.count(direct, (3, 32, 32))
    x = torch.randn(64, 3, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for _ in range(4):  # until a calm moment: on a busy machine a good result counts, a bad one may be the others'
            times = seconds([dense.eval(), small, direct], x, rounds=10)
            ratios.append([statistics.median(map(truediv, *pair)) for pair in (times[:2], times[1:])])
            if max(ratio[0] for ratio in ratios) >= 1.7 and min(ratio[1] for ratio in ratios) <= 1.03:
                return
    finally:
        torch.set_num_threads(threads)
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip(f"the machine is too busy to time on: {ratios}")
    pytest.fail(f"dense / compacted must reach 1.7, compacted / direct stay within 1.03: {ratios}")
