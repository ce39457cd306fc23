"""Criteria: the model is left alone, chunks add up, second derivatives are right, memory is told beforehand."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression import Batch, criteria, models, objectives
from compression.criteria import CRITERIA, chunks, memory
from compression.criteria.chunks import split
from compression.criteria.second_order import CheapSecondOrder
from compression.masks import Masks, prunable
from compression.methods import EPSD


def some_batch(num: int = 8, size: int = 8, classes: int = 10, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    views = [torch.randn(num, 3, size, size, generator=draw, dtype=torch.float64) for _ in range(3)]
    return Batch(views[0], torch.randint(0, classes, (num,), generator=draw), torch.arange(num), *views[1:])


def without_batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5, 10)
    return nn.Sequential(*layers).double()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert float((found[name] - score).abs().max()) <= tolerance * float(score.abs().max()), name


OBJECTIVES = [objectives.CrossEntropy(), objectives.CSKD(), objectives.PSKD(), objectives.DLB()]


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_every_criterion_leaves_model_and_objective_as_they_were(name: str, objective: objectives.Objective):
    torch.manual_seed(0)
    model = models.build("resnet20", 10).double()
    model.get_submodule("stage2").eval()
    model.get_submodule("stage3").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    draws = torch.get_rng_state()
    config = CRITERIA[name]()
    batches = [some_batch(seed=seed) for seed in range(max(1, config.num_batches(objective)))]
    scores = config.score(model, batches, objective)
    assert list(scores) == list(prunable(model))
    assert all(score.shape == before[name].shape and not score.requires_grad for name, score in scores.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert objective.state_dict() == {}
    assert torch.equal(torch.get_rng_state(), draws)


def half_pruned(model: nn.Module) -> Masks:
    draw = torch.Generator().manual_seed(3)
    return Masks({name: torch.rand(w.shape, generator=draw) < 0.5 for name, w in prunable(model).items()})


@pytest.mark.parametrize("name", ["synflow", "force", "iter_snip"])
def test_criteria_in_rounds_score_the_network_that_the_masks_leave(name: str):
    torch.manual_seed(0)
    model, objective, batch = models.build("resnet20", 10).double(), objectives.CrossEntropy(), some_batch()
    masks = half_pruned(model)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for weight, mask in masks.items():
            pruned.get_parameter(weight).mul_(mask)
    found = getattr(criteria, name)(model, [batch], objective, masks=masks)
    alone = getattr(criteria, name)(pruned, [batch], objective)
    for weight, mask in masks.items():
        assert torch.equal(found[weight][mask], alone[weight][mask])
        assert not alone[weight][~mask].any()
    left = sum(int(found[weight][~mask].count_nonzero()) for weight, mask in masks.items())
    # Where a pruned weight of FORCE may come back, it must have a score.
    assert left > 1000 if name == "force" else left == 0


def test_synflow_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model.load_state_dict(
        {"0.weight": torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "1.weight": torch.tensor([[-5.0, 6.0]])}
    )
    batch = Batch(torch.full((3, 2), 9.0), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    scores = criteria.synflow(model, [batch])
    # R = 5 (1 + 2) + 6 (3 + 4): each path's product of absolute values.
    assert scores["0.weight"].tolist() == [[5, 10], [18, 24]]
    assert scores["1.weight"].tolist() == [[15, 42]]
    masks = {"0.weight": torch.tensor([[True, True], [False, True]]), "1.weight": torch.tensor([[True, True]])}
    assert criteria.synflow(model, [batch], masks=masks)["1.weight"].tolist() == [[15, 24]]


def test_synflow_of_a_deep_network_does_not_overflow():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(60)))
    with torch.no_grad():
        flow = torch.ones(1, 64)
        for weight in model.parameters():
            flow = flow @ weight.mul_(10).abs().T
    assert not flow.isfinite().all()
    batch = Batch(torch.ones(1, 64), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    scores = criteria.synflow(model, [batch])
    assert all(score.isfinite().all() and score.dtype == torch.float64 for score in scores.values())
    # What flows through one layer flows through all, and each layer's scores add up to it.
    sums = [float(score.sum()) for score in scores.values()]
    assert max(sums) / min(sums) == pytest.approx(1, rel=1e-9)


def test_chunks_are_as_equal_as_they_can_be():
    batch = some_batch(10)
    chunks = split(batch, 4)
    assert [len(chunk) for chunk in chunks] == [4, 3, 3]
    assert torch.equal(torch.cat([chunk.images for chunk in chunks]), batch.images)
    assert torch.equal(torch.cat([chunk.index for chunk in chunks]), batch.index)
    assert chunks[1].paired is not None
    assert batch.paired is not None
    assert torch.equal(chunks[1].paired, batch.paired[4:7])
    assert split(batch, 10) == [batch]
    boxes = Batch(batch.images, [{"boxes": torch.zeros(n, 4)} for n in range(10)], batch.index)
    assert [len(target["boxes"]) for target in split(boxes, 5)[1].labels] == [5, 6, 7, 8, 9]


CHUNKED: dict[str, Callable[..., dict[str, Tensor]]] = {
    "snip": criteria.snip,
    "grasp": criteria.grasp,
    "force": criteria.force,
    "iter_snip": criteria.iter_snip,
    "first-order prospr": lambda *args, **kw: criteria.prospr(*args, steps=1, first_order=True, **kw),
}


@pytest.mark.parametrize("criterion", CHUNKED.values(), ids=CHUNKED)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("size", [4, 3])
def test_scores_in_chunks_are_those_of_the_whole_batch(
    criterion: Callable[..., dict[str, Tensor]], objective: objectives.Objective, size: int
):
    model = without_batch_norm()
    batches = [some_batch(seed=0), some_batch(seed=1)]
    whole = criterion(model, batches, objective)
    assert_same(criterion(model, batches, objective, chunk_size=size), whole)


def test_batch_norm_sees_the_statistics_of_a_chunk():
    torch.manual_seed(0)
    model, objective, batch = models.build("resnet20", 10).double(), objectives.CrossEntropy(), some_batch()
    parts = [Batch(batch.images[i : i + 4], batch.labels[i : i + 4], batch.index[i : i + 4]) for i in (0, 4)]
    assert_same(criteria.snip(model, [batch], objective, chunk_size=4), criteria.snip(model, parts, objective))


def test_chunks_of_a_full_meta_gradient_are_refused():
    for refused in (
        lambda: criteria.prospr(without_batch_norm(), [some_batch()], objectives.CrossEntropy(), chunk_size=4),
        lambda: criteria.ProsPrConfig(chunk_size=4),
        lambda: EPSD(chunk_size=4),
    ):
        with pytest.raises(ValueError, match="first_order"):
            refused()
    with pytest.raises(ValueError, match="chunk_size is a number of images"):
        criteria.SNIPConfig(chunk_size=0)
    assert EPSD(first_order=True, chunk_size=4).chunk_size == 4


def awkward_network() -> nn.Sequential:
    """Convolutions and BatchNorms of every kind that the closed forms have to know, a weight of 0 among them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, groups=3, dilation=2, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 4, (1, 3), padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4).eval(),
        nn.BatchNorm2d(4, momentum=None),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
    ).double()
    with torch.no_grad():
        network.get_parameter("1.weight")[2] = 0
        network.get_buffer("7.running_mean").normal_()
    return network


@pytest.mark.parametrize("missing", [["bias"], ["weight"], ["weight", "bias"]])
def test_a_batch_norm_without_one_of_its_parameters(missing: list[str]):
    """Against its formula: PyTorch's own second derivative of it is an error."""
    layer, images = nn.BatchNorm2d(3).double(), some_batch(4).images.requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    for name in missing:
        layer.register_parameter(name, None)
    inputs = [images, *layer.parameters()]

    def formula(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
        y = centred * (centred.square().mean(dim=(0, 2, 3), keepdim=True) + layer.eps).rsqrt()
        y = y if layer.weight is None else y * layer.weight.view(1, -1, 1, 1)
        return y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1)

    def derivatives(network: Callable[[Tensor], Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(network(images).pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), inputs)
        return [*first, *second]

    with CheapSecondOrder():
        found = derivatives(layer)
    for one, other in zip(found, derivatives(formula), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Tokens(nn.Module):
    """A transformer's block over 4 x 4 pixels: attention as a module, then as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(self.embed(images).flatten(2).transpose(1, 2))[:, None]
        return self.head(F.scaled_dot_product_attention(x, x, x).mean(dim=(1, 2)))


def test_a_meta_gradient_through_attention_is_the_derivative():
    """Against the difference of the loss after the inner steps, in float64."""
    torch.manual_seed(0)
    model, batch, objective = Tokens().double(), some_batch(8), objectives.CrossEntropy()
    name, place, step = "block.self_attn.in_proj_weight", (3, 2), 1e-5

    def after_one_step(factor: float) -> float:
        theta = {key: p.detach().clone() for key, p in model.named_parameters()}
        theta[name][place] *= factor
        theta = {key: p.requires_grad_() for key, p in theta.items()}
        loss = chunks.total_loss(model.train(), theta, {}, objective, batch)
        gradients = torch.autograd.grad(loss, list(theta.values()))
        theta = {key: p - 0.1 * g for (key, p), g in zip(theta.items(), gradients, strict=True)}
        return float(chunks.total_loss(model, theta, {}, objective, batch).detach())

    slope = (after_one_step(1 + step) - after_one_step(1 - step)) / (2 * step)
    found = criteria.prospr(model, [batch], objective, steps=1)[name][place]
    assert float(found) == pytest.approx(abs(slope), rel=1e-5)
    assert all(score.isfinite().all() for score in criteria.grasp(model, [batch], objectives.CSKD()).values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_second_derivatives_are_those_of_pytorch(layout: torch.memory_format):
    network = awkward_network().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    images = some_batch(6, size=16).images.contiguous(memory_format=layout)
    parameters = list(network.parameters())
    draw = torch.Generator().manual_seed(5)
    directions = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]

    def derivatives(context: AbstractContextManager[object]) -> list[Tensor]:
        with context:
            loss = network(images).pow(3).sum()
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            second = torch.autograd.grad(first, parameters, directions)
        return [loss, *first, *second]

    for found, expected in zip(derivatives(CheapSecondOrder()), derivatives(nullcontext()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_batch_norm_of_one_value_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)).double()
    with pytest.raises(ValueError, match="more images"):
        criteria.grasp(network, [some_batch(1)], objectives.CrossEntropy())


def test_a_meta_gradient_that_does_not_fit_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, batch, objective = models.build("resnet20", 10).double(), some_batch(16), objectives.CrossEntropy()
    needed = memory.meta_gradient_bytes(model, batch, objective, 3)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    figure = rf"needs about {needed / 2**30:.1f} GiB.*{needed / 2**30:.1f} GiB are free"
    with pytest.raises(ValueError, match=f"{figure}.*first_order.*scoring_batch_size"):
        criteria.prospr(model, [batch], objective)
    criteria.prospr(model, [batch], objective, first_order=True)
    criteria.prospr(model, [some_batch(8)], objective)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    criteria.prospr(model, [batch], objective)


def test_the_estimate_grows_with_images_and_steps():
    torch.manual_seed(0)
    model, objective = models.build("resnet20", 10), objectives.CSKD()
    small, large = [some_batch(num, size=32).to(dtype=torch.float32) for num in (16, 64)]
    needed = memory.meta_gradient_bytes(model, small, objective, 3)
    assert memory.meta_gradient_bytes(model, large, objective, 3) == pytest.approx(4 * needed, rel=0.3)
    assert memory.meta_gradient_bytes(model, small, objective, 6) == pytest.approx(2 * needed, rel=0.3)


MEASURE = """
import torch
from compression import Batch, criteria, models, objectives
from compression.criteria.memory import meta_gradient_bytes

def status(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
torch.manual_seed(0)
model = models.build("resnet18_small", 10).to(memory_format=torch.channels_last)
images = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
batch = Batch(images, torch.randint(0, 10, (16,)), torch.arange(16))
estimate = meta_gradient_bytes(model, batch, objectives.CrossEntropy(), 2)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
criteria.prospr(model, [batch], objectives.CrossEntropy(), steps=2)
print(estimate, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_the_estimate_is_within_a_factor_of_two_of_the_measured_peak():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    estimate, peak = (int(word) for word in done.stdout.split())
    assert peak / 2 < estimate < 2 * peak


def write_group(folder: Path, limit: str, usage: int, cache: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names[:2], (limit, str(usage)), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


def test_control_groups_limit_what_is_free(tmp_path: Path):
    own, two = tmp_path / "own", ("memory.max", "memory.current", "inactive_file")
    own.write_text("0::/job/task\n")
    write_group(tmp_path / "job", "1000", 700, 100, two)
    write_group(tmp_path / "job" / "task", "max", 200, 0, two)
    assert memory.control_group_bytes(tmp_path, own) == [400]
    write_group(
        tmp_path / "memory" / "job",
        "900",
        300,
        50,
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    own.write_text("5:cpu:/elsewhere\n3:memory:/job\n")
    assert memory.control_group_bytes(tmp_path, own) == [650]
    assert memory.control_group_bytes(tmp_path, tmp_path / "nothing") == []
    assert memory.free_bytes(torch.device("cpu")) > 0
