"""The pieces of compression on tiny, hand-checked arrays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compression import Batch, allocation, artifact, cost, criteria, models, objectives
from compression.batch import Info
from compression.masks import Masks, prunable
from compression.models.resnet_cifar import ChannelShortcut
from pipelines.optimizers import SGD, AdamW, TorchOptimizer, check_elementwise, parameter_groups


def bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def some_batch(num: int = 6, size: int = 8, classes: int = 10, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    images = [torch.randn(num, 3, size, size, generator=draw, dtype=torch.float64) for _ in range(3)]
    labels = torch.randint(0, classes, (num,), generator=draw)
    return Batch(images[0], labels, torch.arange(num), images[1], images[2])


def test_topk_keeps_the_highest_of_all_layers():
    masks = allocation.global_topk({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[2.0, 4.0, 3.0]])}, 0.4)
    assert torch.equal(masks["a"], bools(0, 1))
    assert torch.equal(masks["b"], bools(0, 1, 1)[None])
    assert masks.sparsity == pytest.approx(0.4)


def test_topk_prunes_the_earlier_of_equal_scores():
    masks = allocation.global_topk({"a": torch.ones(3), "b": torch.ones(2)}, 0.8)
    assert torch.equal(masks["a"], bools(0, 0, 0))
    assert torch.equal(masks["b"], bools(0, 1))


@pytest.mark.parametrize(
    ("num", "sparsity", "kept"), [(10, 0.9, 1), (10, 0.95, 1), (1000, 0.999, 1), (7, 0.5, 4), (10, 0, 10)]
)
def test_topk_counts_the_decimal_that_is_written(num: int, sparsity: float, kept: int):
    assert allocation.global_topk({"a": torch.arange(num)}, sparsity).num_kept == kept


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 95, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity: float):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        allocation.global_topk({"a": torch.ones(3)}, sparsity)


def test_scores_that_are_not_numbers_are_named():
    with pytest.raises(ValueError, match=r"conv\.weight"):
        allocation.global_topk({"conv.weight": torch.tensor([1.0, float("nan")])}, 0.5)


def test_a_layer_pruned_to_nothing_is_named():
    masks = allocation.global_topk({"first": torch.ones(2), "second": 2 * torch.ones(2)}, 0.5)
    assert masks.empty_layers() == ["first"]
    with pytest.raises(ValueError, match=r"nothing is left of first.*allow_empty"):
        masks.check(0.5)
    assert masks.check(0.5, allow_empty=True) is masks


def test_masks_are_bools_of_the_parameters_shape():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="bool"):
        Masks({"weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="shape"):
        Masks({"weight": bools(1, 0)}).attach(layer)
    with pytest.raises(ValueError, match="other"):
        Masks({"other": bools(1, 0)}).attach(layer)


def test_verify_names_the_layer():
    layer = nn.Linear(2, 2)
    masks = Masks({"weight": bools(1, 0, 0, 1).view(2, 2)})
    with pytest.raises(ValueError, match=r"weight \(2\)"):
        masks.verify(layer)
    masks.attach(layer)
    masks.verify(layer)


def test_an_overflowed_gradient_of_a_pruned_weight_is_zero():
    layer = nn.Linear(2, 1, bias=False)
    hooks = Masks({"weight": bools(1, 0)[None]}).attach(layer)
    layer(torch.tensor([1.0, float("inf")])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 0.0]]
    hooks.close()
    layer.zero_grad()
    layer(torch.tensor([1.0, 2.0])).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
        SGD(lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        AdamW(lr=0.1, weight_decay=0.1),
        *(
            TorchOptimizer(name, 0.01, 0.1)
            for name in ("Adam", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop")
        ),
    ],
    ids=str,
)
def test_pruned_weights_stay_exactly_zero(optimizer: SGD | AdamW | TorchOptimizer):
    torch.manual_seed(0)
    model = models.build("resnet20", 10).double()
    masks = allocation.global_topk(criteria.snip(model, [some_batch()], objectives.CrossEntropy()), 0.9)
    masks.attach(model)
    built = optimizer.build(parameter_groups(model))
    check_elementwise(built)
    kept = {name: p.detach().clone() for name, p in prunable(model).items()}
    for step in range(3):
        objectives.CrossEntropy()(model, some_batch(seed=step))["cross_entropy"].backward()
        built.step()
        built.zero_grad()
        masks.verify(model)
    assert all(not torch.equal(p, kept[name]) for name, p in prunable(model).items())


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "LBFGS"])
def test_optimisers_that_are_not_elementwise_are_refused(name: str):
    with pytest.raises(ValueError, match=name):
        check_elementwise(getattr(torch.optim, name)([nn.Parameter(torch.ones(2, 2))]))


def test_criteria_leave_the_model_alone():
    torch.manual_seed(0)
    model = models.build("resnet20", 10).double()
    model.get_submodule("stage2").eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    objective = objectives.DLB()
    for score in (criteria.snip, criteria.prospr, criteria.grasp, criteria.magnitude, criteria.random):
        found = score(model, [some_batch()], objective)
        assert list(found) == list(prunable(model))
        assert all(value.shape == model.get_parameter(name).shape for name, value in found.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert objective.last is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_must_be_equal_are_equal_to_the_last_bit(dtype: torch.dtype):
    torch.manual_seed(0)
    model, batch = models.build("resnet20", 10).to(dtype), some_batch(16).to(dtype=dtype)
    plain = criteria.prospr(model, [batch], objectives.CrossEntropy())
    for objective in (objectives.CSKD(weight=0), objectives.PSKD(alpha=0)):
        same = criteria.prospr(model, [batch], objective)
        assert all(torch.equal(same[name], score) for name, score in plain.items())
    snip = criteria.snip(model, [batch], objectives.CrossEntropy())
    none = criteria.prospr(model, [batch], objectives.CrossEntropy(), steps=0)
    assert all(torch.equal(none[name], score) for name, score in snip.items())


def test_prospr_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = some_batch(5, size=2, classes=3)
    objective = objectives.LabelSmoothing()
    scores = criteria.prospr(model, [batch], objective, steps=2, lr=0.3)

    def loss(theta: dict[str, Tensor]) -> Tensor:
        losses = objective(lambda x: torch.func.functional_call(model, theta, (x,)), batch)
        return torch.stack(list(losses.values())).sum()

    def loss_after_two_steps(name: str, place: tuple[int, int], factor: float) -> float:
        theta = {n: p.detach().clone() for n, p in model.named_parameters()}
        theta[name][place] *= factor
        for _ in range(2):
            theta = {n: p.requires_grad_() for n, p in theta.items()}
            gradients = torch.autograd.grad(loss(theta), list(theta.values()))
            theta = {n: (p - 0.3 * g).detach() for (n, p), g in zip(theta.items(), gradients, strict=True)}
        return loss(theta).item()

    for name, place in [("1.weight", (0, 3)), ("3.weight", (2, 1))]:
        slope = (loss_after_two_steps(name, place, 1 + 1e-5) - loss_after_two_steps(name, place, 1 - 1e-5)) / 2e-5
        assert abs(slope) == pytest.approx(float(scores[name][place]), rel=1e-6)


def test_scores_without_data():
    torch.manual_seed(0)
    model = models.build("resnet20", 10)
    magnitudes = criteria.magnitude(model)
    assert torch.equal(magnitudes["fc.weight"], model.get_parameter("fc.weight").abs())
    once, again, other = criteria.random(model), criteria.random(model), criteria.random(model, seed=1)
    assert all(torch.equal(score, again[name]) and not torch.equal(score, other[name]) for name, score in once.items())
    masks = allocation.global_topk(once, 0.9)
    density = {name: float(mask.double().mean()) for name, mask in masks.items()}
    assert all(abs(density[name] - 0.1) < 0.06 for name in density)


def test_pskd_scores_see_the_step_before():
    torch.manual_seed(0)
    model, batch = models.build("resnet20", 10).double(), some_batch()
    objective = objectives.PSKD(alpha=0.8)
    assert objective.scoring_batches(3) == 1
    assert objectives.CSKD().scoring_batches(3) == 4
    plain = criteria.prospr(model, [batch], objectives.CrossEntropy())
    assert any(
        not torch.equal(score, plain[name]) for name, score in criteria.prospr(model, [batch], objective).items()
    )
    assert objective.state_dict() == {}


def test_wrong_numbers_of_batches_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    with pytest.raises(ValueError, match="1 or 4 batches, not 2"):
        criteria.prospr(model, [some_batch(), some_batch()], objectives.CrossEntropy())
    with pytest.raises(ValueError, match="at least 1"):
        criteria.snip(model, [], objectives.CrossEntropy())


def test_a_model_without_prunable_layers_is_refused():
    with pytest.raises(ValueError, match="nothing to prune"):
        prunable(nn.BatchNorm2d(3))


def test_dlb_goes_on_from_its_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    first, second = some_batch(seed=1), some_batch(seed=2)
    objective, resumed = objectives.DLB(), objectives.DLB()
    objective.begin_epoch(4, 10)
    objective(model, first)
    asked = []
    resumed.load_state_dict(objective.state_dict(), lambda index, epoch: asked.append((index.tolist(), epoch)) or first)
    assert asked == [(list(range(6)), 4)]
    expected, found = objective(model, second), resumed(model, second)
    assert list(expected) == ["cross_entropy", "dlb"]
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_pskd_memory_is_sized_by_the_data_and_goes_on():
    objective = objectives.PSKD()
    objective.setup(Info(10, (3, 8, 8), {"train": 50, "val": 0, "test": 0}), torch.device("cpu"))
    objective.begin_epoch(1, 2)
    objective(lambda images: images.flatten(1)[:, :10], some_batch())
    state = objective.state_dict()
    assert state["memory"].shape == (50, 10)
    assert state["memory"].sum(1)[:6].allclose(torch.ones(6).double())
    assert not state["memory"][6:].any()


def test_missing_views_are_named():
    batch = Batch(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="paired"):
        objectives.CSKD()(lambda x: x, batch)
    with pytest.raises(ValueError, match="second_view"):
        objectives.DLB()(lambda x: x, batch)


@pytest.mark.parametrize(("name", "params"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)])
def test_cifar_resnets_have_the_published_sizes(name: str, params: int):
    assert cost.count(models.build(name, 10), (3, 32, 32)).params == params


def test_option_a_shortcut_by_hand():
    x = torch.arange(2 * 3 * 3, dtype=torch.float32).view(1, 2, 3, 3)
    out = ChannelShortcut.padded(2, 4, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [6.0, 8.0]]
    assert out[0, 2].tolist() == [[9.0, 11.0], [15.0, 17.0]]
    assert not out[0, 0].any()
    assert not out[0, 3].any()


def test_effective_macs_count_what_is_left():
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 5))
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = 0
    found = cost.count(model, (3, 4, 4))
    assert found.macs == 2 * 27 * 16 + 160
    assert found.effective_macs == 27 * 16 + 160
    assert model.training


def test_unknown_models_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean resnet18_small"):
        models.build("resnet18small", 10)


def test_artifact_comes_back_equal(tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet20", 7).double()
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model(some_batch().images)
    artifact.save(model, tmp_path)
    loaded = artifact.load(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    images = some_batch(seed=3).images
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=1e-12, atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arch.json", "model.safetensors"]
    (tmp_path / "arch.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"arch\.json"):
        artifact.load(tmp_path)
