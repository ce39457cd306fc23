"""Costs: operations counted by hand, seconds and bytes that must be what they say."""

from __future__ import annotations

import mmap
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression import Batch, cost, models, objectives
from compression.batch import Info

CPU = torch.device("cpu")

CONVOLUTION, LINEAR = 3 * 9 * 4 * 64, 4 * 64 * 5
"""MACs of one image of 8 x 8 through `small`."""


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)]
    return nn.Sequential(*layers)


def batch_of(num: int = 8, dtype: torch.dtype = torch.float32, num_classes: int = 5) -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, paired, second = (torch.randn(num, 3, 8, 8, generator=draw).to(dtype) for _ in range(3))
    return Batch(images, torch.arange(num) % num_classes, torch.arange(num), paired, second)


def ready(objective: objectives.Objective) -> objectives.Objective:
    objective.setup(Info(5, (3, 8, 8), {"train": 40, "val": 0, "test": 0}), CPU)
    return objective


def test_a_training_step_by_hand():
    # Forward; gradients of both weights; gradient of the linear layer's input. Images need none.
    by_hand = 2 * (CONVOLUTION + LINEAR) * 2 + 2 * LINEAR
    assert cost.training_flops(small(), objectives.CrossEntropy(), batch_of()) == by_hand


@pytest.mark.parametrize(
    ("make", "forwards"),
    [
        (objectives.LabelSmoothing, 0),
        (objectives.PSKD, 0),
        (objectives.TfKD, 0),
        (objectives.CSKD, 1),
        (lambda: objectives.KD(small()), 1),
        (lambda: objectives.KD(small(), cache=True), 1),
        (lambda: objectives.TfKD(small()), 1),
    ],
)
def test_an_objective_adds_its_forwards(make, forwards: int):
    forward = 2 * (CONVOLUTION + LINEAR)
    plain = cost.training_flops(small(), objectives.CrossEntropy(), batch_of())
    assert cost.training_flops(small(), ready(make()), batch_of()) == plain + forwards * forward


def test_kd_adds_its_teachers_forward():
    model, teacher = models.build("resnet20", 5), models.build("resnet32", 5)
    plain = cost.training_flops(model, objectives.CrossEntropy(), batch_of())
    taught = cost.training_flops(model, ready(objectives.KD(teacher)), batch_of())
    assert taught - plain == 2 * cost.count(teacher, (3, 8, 8)).macs


def test_dlb_trains_on_two_views():
    plain = cost.training_flops(small(), objectives.CrossEntropy(), batch_of())
    assert cost.training_flops(small(), objectives.DLB(), batch_of()) == 2 * plain


def test_a_step_takes_three_forwards_of_every_layer_but_the_first():
    model = models.build("resnet20", 5)
    macs, first = cost.count(model, (3, 8, 8)).macs, 3 * 9 * 16 * 64
    assert cost.training_flops(model, objectives.CrossEntropy(), batch_of()) == 6 * macs - 2 * first


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 6, 3, groups=6, padding=1, stride=2), (6, 8, 8)),
        (nn.Conv2d(6, 9, 3, groups=3), (6, 8, 8)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), (6, 8, 8)),
        (nn.Conv1d(6, 4, 5), (6, 16)),
        (nn.Linear(6, 4), (7, 6)),
    ],
)
def test_backward_takes_two_forwards(layer: nn.Module, shape: tuple[int, ...]):
    images = torch.randn(2, *shape, requires_grad=True)
    output, forward = cost.count_flops(lambda: layer(images))
    assert isinstance(layer.weight, Tensor)
    # A weight is used once a position: of the output, or where a convolution is transposed, of the input.
    positions = images[:, 0].numel() if isinstance(layer, nn.ConvTranspose2d) else output.numel() // output.shape[1]
    if isinstance(layer, nn.Linear):
        positions = 2 * 7
    assert forward == 2 * positions * layer.weight.numel()
    assert cost.count_flops(lambda: output.sum().backward())[1] == 2 * forward


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_way_of_a_forward_counts_alike(mode):
    model = small().eval()
    with mode():
        assert cost.count_flops(lambda: model(batch_of(3).images))[1] == 3 * 2 * (CONVOLUTION + LINEAR)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_attention_is_counted(mode):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    words = torch.randn(3, 5, 8)
    projections, attention = 4 * 3 * 5 * 8 * 8, 2 * 3 * 5 * 5 * 8
    with mode():
        assert cost.count_flops(lambda: layer(words, words, words, need_weights=False))[1] == 2 * (
            projections + attention
        )
    assert torch.backends.mha.get_fastpath_enabled()
    query = torch.randn(3, 2, 5, 4, requires_grad=True)
    with mode():
        assert cost.count_flops(lambda: F.scaled_dot_product_attention(query, query, query))[1] == 2 * attention


def test_flops_are_linear_in_the_images():
    model = models.build("resnet20", 5)
    once, twice = (cost.count_flops(lambda n=n: model(batch_of(n).images))[1] for n in (4, 8))
    assert twice == 2 * once
    assert once == 4 * 2 * cost.count(model, (3, 8, 8)).macs
    objective = objectives.CrossEntropy()
    assert cost.training_flops(model, objective, batch_of(3)) == cost.training_flops(model, objective, batch_of(8))


def test_counts_nest():
    model = small().eval()

    def twice() -> int:
        return sum(cost.count_flops(lambda: model(batch_of(2).images))[1] for _ in range(2))

    inner, outer = cost.count_flops(twice)
    assert inner == outer > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_and_layout_do_not_matter(dtype: torch.dtype):
    model = models.build("resnet20", 5)
    expected = cost.training_flops(model, objectives.CrossEntropy(), batch_of())
    model = model.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert cost.training_flops(model, objectives.CrossEntropy(), batch_of(dtype=dtype)) == expected


def test_counting_a_step_leaves_everything_as_it_was():
    model, objective = small().eval(), ready(objectives.PSKD())
    model.append(nn.Dropout(0.5).train())
    objective(model, batch_of())
    memory = objective.state_dict()["memory"].clone()
    fired = []
    model.get_parameter("0.weight").register_hook(lambda gradient: fired.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():
        assert cost.training_flops(model, objective, batch_of()) > 0
    assert fired == []
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(objective.state_dict()["memory"], memory)
    objective(model.train(), batch_of())["cross_entropy"].backward()
    assert fired == [1]


class Sleepy(nn.Module):
    """A network whose forward pass takes as long as it is told, and which notes how it is called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.seconds = seconds
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((len(images), self.training, torch.is_inference_mode_enabled()))
        self.memory_format = images.is_contiguous(memory_format=torch.channels_last)
        self.dtype = images.dtype
        time.sleep(self.seconds * len(images))
        return self.layer(images)


def test_latency_is_the_seconds_of_a_forward_pass():
    model, random = Sleepy(0.005).train(), torch.get_rng_state()
    found = cost.latency(model, (3, 8, 8), batch_sizes=(1, 4), seconds=0.05)
    assert list(found) == [1, 4]
    assert found[1] >= 0.005
    assert found[4] >= 0.02
    assert found[4] < 1
    assert {call[1:] for call in model.calls} == {(False, True)}
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_latency_takes_at_least_three_passes_and_no_more_than_it_may():
    model = Sleepy(0.02)
    cost.latency(model, (3, 8, 8), batch_sizes=(1,), seconds=0)
    assert len(model.calls) == 4
    model.calls.clear()
    cost.latency(model, (3, 8, 8), batch_sizes=(1,), seconds=0.1)
    assert 4 <= len(model.calls) <= 6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_latency_gives_images_as_the_weights_lie(layout: torch.memory_format):
    model = Sleepy(0).double().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    cost.latency(model, (3, 8, 8), batch_sizes=(2,), seconds=0)
    assert model.memory_format == (layout == torch.channels_last)
    assert model.dtype == torch.float64


def test_peak_memory_of_the_process_is_measured_and_starts_again():
    size = 256 * 2**20

    def take_and_give_back() -> None:
        with mmap.mmap(-1, size) as memory:
            for place in range(0, size, 4096):
                memory[place] = 1

    cost.reset_peak_memory(CPU)
    before = cost.peak_memory(CPU)
    take_and_give_back()
    peak = cost.peak_memory(CPU)
    if not cost.reset_peak_memory(CPU):
        assert peak >= before
        pytest.skip("the kernel does not let this process reset its peak")
    assert peak >= before + 0.9 * size
    assert cost.peak_memory(CPU) < peak - 0.9 * size


def test_a_peak_that_cannot_be_reset_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    assert cost.reset_peak_memory(CPU) is False
    assert cost.peak_memory("cpu") > 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_costs_on_a_gpu():
    device = torch.device("cuda")
    model = models.build("resnet20", 5).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    random = torch.cuda.get_rng_state()
    objective, batch = objectives.CrossEntropy(), batch_of()
    found = cost.training_flops(model, objective, batch.to(device))
    assert found == cost.training_flops(models.build("resnet20", 5), objective, batch)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert cost.latency(model, (3, 8, 8), (1, 8), seconds=0.05)[8] > 0
    assert cost.reset_peak_memory(device)
    before = cost.peak_memory(device)
    held = torch.empty(2**26, dtype=torch.uint8, device=device)
    assert cost.peak_memory(device) >= before + len(held)
