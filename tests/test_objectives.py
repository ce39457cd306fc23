"""Objectives that learn from a teacher, and how predictions are summed up, on tiny, hand-checked arrays."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from compression import Batch, criteria, models, objectives
from compression.batch import Info
from compression.diagnostics import prediction_statistics
from compression.objectives.kd import log_target_divergence
from compression.objectives.teacher import Teacher
from pipelines.identity import canonical

CPU = torch.device("cpu")


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(images: Tensor, first: int = 0, num_classes: int = 3) -> Batch:
    """Samples first, first + 1... of a split, their labels going round."""
    index = first + torch.arange(len(images))
    return Batch(images, index % num_classes, index)


def info(num_classes: int = 3, size: int = 4, num_train: int = 12) -> Info:
    return Info(num_classes, (3, size, size), {"train": num_train, "val": 0, "test": 0})


def network(seed: int, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, num_classes)).double()


def itself(images: Tensor) -> Tensor:
    return images


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_kd_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: logits are 2 log p.
    teacher = 2 * torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    batch = Batch(student, torch.tensor([0]), torch.tensor([0]))
    losses = objectives.KD(lambda _: teacher, temperature=2, alpha=0.6)(itself, batch)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses["kd"].item() == pytest.approx(0.6 * 4 * divergence, rel=1e-12)
    assert losses["cross_entropy"].item() == pytest.approx(0.4 * math.log(2), rel=1e-12)
    # d/ds of T^2 KL is T (student's probabilities - teacher's).
    [gradient] = torch.autograd.grad(total(losses), student)
    by_hand = 0.6 * 2 * torch.tensor([[-0.25, 0.25]]) + 0.4 * torch.tensor([[-0.5, 0.5]])
    torch.testing.assert_close(gradient, by_hand.double(), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_formulas():
    teacher, student, labels = draws(5, 4, seed=1), draws(5, 4, seed=2), torch.tensor([0, 3, 1, 1, 2])
    onehot = F.one_hot(labels, 4).double()

    def gradient(objective: objectives.Objective) -> Tensor:
        logits = student.clone().requires_grad_()
        return torch.autograd.grad(total(objective(itself, Batch(logits, labels, torch.arange(5)))), logits)[0]

    p, (t3, p3) = student.softmax(1), ((teacher / 3).softmax(1), (student / 3).softmax(1))
    cross_entropy = (p - onehot) / 5
    kd = 0.7 * 3 * (p3 - t3) / 5 + 0.3 * cross_entropy
    torch.testing.assert_close(gradient(objectives.KD(lambda _: teacher, 3, 0.7)), kd, rtol=1e-10, atol=1e-12)
    tf_kd = 0.7 * 8 / 4 * 3 * (p3 - t3) / 5 + 0.3 * cross_entropy
    found = gradient(objectives.TfKD(lambda _: teacher, 3, 0.7, 8))
    torch.testing.assert_close(found, tf_kd, rtol=1e-10, atol=1e-12)
    virtual = ((0.05 + 0.8 * onehot) / 3).softmax(1)
    reg = 0.7 * 8 / 4 * (p - virtual) / 5 + 0.3 * cross_entropy
    found = gradient(objectives.TfKD(None, 3, 0.7, 8, confidence=0.85))
    torch.testing.assert_close(found, reg, rtol=1e-10, atol=1e-12)


def test_the_authors_divergence_has_the_gradient_of_their_expression():
    teacher, student = draws(5, 4, seed=1), draws(5, 4, seed=2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that the mean is not over the batch
        literal = F.kl_div(F.log_softmax(student / 3, dim=1), F.log_softmax(teacher / 3, dim=1))
    assert torch.isnan(literal)
    value = log_target_divergence(teacher, student, 3)
    [expected], [found] = torch.autograd.grad(literal, student), torch.autograd.grad(value, student)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.isfinite(value)
    losses = objectives.KD(lambda _: teacher, 3, 0.4, "authors")(itself, Batch(student, torch.zeros(5).long(), student))
    torch.testing.assert_close(losses["kd"], 0.4 * value)


def test_the_authors_divergence_is_not_least_at_the_teacher():
    teacher = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    [gradient] = torch.autograd.grad(log_target_divergence(teacher, student, 1), student)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("make", [objectives.KD, objectives.TfKD])
def test_a_teacher_is_not_changed_by_training(make):
    teacher, student = network(0).train(), network(1)
    objective = make(teacher)
    objective.setup(info(), CPU)
    before = state(teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(3):
        student.train()
        if step == 1:
            teacher.train()  # someone else has it as part of a larger module
        total(objective(student, batch_of(draws(4, 3, 4, 4, seed=step)))).backward()
        optimizer.step()
        assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert_equal(teacher.state_dict(), before)
    assert objective.state_dict() == {}


@pytest.mark.parametrize("make", [objectives.KD, objectives.TfKD])
def test_copies_share_the_teacher(make):
    objective = make(network(0))
    copied = copy.deepcopy(objective)
    assert copied is not objective
    assert copied.teacher is objective.teacher
    batch = batch_of(draws(4, 3, 4, 4))
    assert_equal(copied(network(1).eval(), batch), objective(network(1).eval(), batch))


def test_a_teacher_keeps_its_own_precision():
    teacher = network(0).eval()
    expected = objectives.KD(copy.deepcopy(teacher))(network(1).eval(), batch_of(draws(4, 3, 4, 4)))
    found = objectives.KD(teacher.float())(network(1).eval(), batch_of(draws(4, 3, 4, 4)))
    torch.testing.assert_close(found["kd"], expected["kd"], rtol=1e-3, atol=0)
    assert all(p.dtype == torch.float32 for p in teacher.parameters())


@pytest.mark.parametrize("make", [objectives.KD, objectives.TfKD])
def test_a_teacher_of_other_classes_is_refused_before_training(make):
    with pytest.raises(ValueError, match="teacher has 5 classes and the data have 3"):
        make(network(0, num_classes=5)).setup(info(num_classes=3), CPU)


@pytest.mark.parametrize("divergence", ["kl", "authors"])
def test_a_teacher_of_one_class_is_not_broadcast(divergence):
    objective = objectives.KD(lambda images: images[:, :1], divergence=divergence)
    with pytest.raises(ValueError, match=r"teacher's logits are \(4, 1\) and the student's \(4, 3\)"):
        objective(itself, batch_of(draws(4, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.KDConfig(temperature=0), "temperature must be above 0, not 0"),
        (lambda: objectives.KDConfig(alpha=1.5), r"alpha must lie in \[0, 1\], not 1.5"),
        (lambda: objectives.KDConfig(divergence="js"), "kl.*authors.*js"),  # pyright: ignore[reportArgumentType]
        (lambda: objectives.TfKDSelfConfig(multiplier=-1), "multiplier must be above 0"),
        (lambda: objectives.TfKDRegConfig(confidence=2), "confidence must lie in"),
        (lambda: objectives.KD(itself, temperature=-1), "temperature"),
        (lambda: objectives.TfKD(alpha=-0.1), "alpha"),
    ],
)
def test_values_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Counted(nn.Module):
    """A network that counts how often it is asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(images)


def test_a_cache_gives_what_the_teacher_gives():
    images, order = draws(12, 3, 4, 4), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    teacher, student = Counted(network(0)), network(1).eval()
    plain, cached = objectives.KD(network(0)), objectives.KD(teacher, cache=True)
    assert (plain.needs, cached.needs) == (frozenset(), {"index"})
    cached.setup(info(), CPU)
    calls = []
    for epoch in range(3):
        for start in range(0, 12, 4):
            rows = order.roll(epoch)[start : start + 4]
            batch = Batch(images[rows], rows % 3, rows)
            expected, found = plain(student, batch), cached(student, batch)
            torch.testing.assert_close(found["kd"], expected["kd"], rtol=1e-12, atol=1e-12)
        cached.sync()
        calls.append(teacher.calls)
    assert calls == [4, 4, 4]  # once in setup, three batches in the first epoch, none later
    assert cached.state_dict() == {}


def test_a_cache_with_a_sample_missing_asks_the_teacher():
    teacher, images = Counted(network(0)), draws(12, 3, 4, 4)
    objective = objectives.KD(teacher, cache=True)
    objective.setup(info(), CPU)
    objective(network(1).eval(), batch_of(images[:11]))
    objective.sync()
    found = objective(network(1).eval(), batch_of(images[8:], first=8))
    expected = objectives.KD(network(0))(network(1).eval(), batch_of(images[8:], first=8))
    torch.testing.assert_close(found["kd"], expected["kd"])
    assert teacher.calls == 3
    objective.sync()
    objective(network(1).eval(), batch_of(images[8:], first=8))
    assert teacher.calls == 3


def test_a_cache_filled_in_another_order_has_the_same_bits():
    # A resumed training fills it again from other batches of the same size.
    images, found = draws(32, 3, 8, 8).float(), []
    torch.manual_seed(0)
    teacher = models.build("resnet20", 3)
    for order in (torch.arange(32), torch.randperm(32, generator=torch.Generator().manual_seed(0))):
        cached = Teacher(teacher, cache=True)
        cached.setup(info(num_train=32, size=8), CPU)
        for rows in order.split(16):
            cached(Batch(images[rows], rows % 3, rows))
        cached.sync()
        found.append(cached(Batch(images, torch.arange(32) % 3, torch.arange(32))))
    assert torch.equal(*found)


def work_as_one_of_two(rank: int, folder: str) -> None:
    """Each worker sees half of the samples; after `sync` both have all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    teacher, images = Counted(network(0)), draws(12, 3, 4, 4)
    kd, ps_kd = objectives.KD(teacher, cache=True), objectives.PSKD(half_memory=True)
    for objective in (kd, ps_kd):
        objective.setup(info(), CPU)
        objective(network(1).eval(), batch_of(images[6 * rank : 6 * rank + 6], first=6 * rank))
        objective.sync()
    other = batch_of(images[6 - 6 * rank : 12 - 6 * rank], first=6 - 6 * rank)
    torch.save((kd(network(1).eval(), other), teacher.calls, ps_kd.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_workers_share_what_they_remember(tmp_path):
    torch.multiprocessing.spawn(work_as_one_of_two, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    images = draws(12, 3, 4, 4)
    ps_kd = objectives.PSKD(half_memory=True)
    ps_kd.setup(info(), CPU)
    ps_kd(network(1).eval(), batch_of(images))
    for rank in range(2):
        losses, calls, memory = torch.load(tmp_path / f"{rank}.pt")
        other = batch_of(images[6 - 6 * rank : 12 - 6 * rank], first=6 - 6 * rank)
        expected = objectives.KD(network(0))(network(1).eval(), other)
        torch.testing.assert_close(losses["kd"], expected["kd"], rtol=1e-12, atol=1e-12)
        assert calls == 2  # in setup, and for its own half
        assert torch.equal(memory["memory"], ps_kd.state_dict()["memory"])


def test_copies_have_a_cache_of_their_own():
    teacher, images = Counted(network(0)), draws(12, 3, 4, 4)
    objective = objectives.KD(teacher, cache=True)
    objective.setup(info(), CPU)
    copied = copy.deepcopy(objective)
    copied(network(1).eval(), batch_of(images))
    copied.sync()
    objective.sync()
    objective(network(1).eval(), batch_of(images))
    assert teacher.calls == 3


def test_a_cache_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"setup\(info, device\)"):
        objectives.KD(network(0), cache=True)(network(1), batch_of(draws(4, 3, 4, 4)))


def test_scoring_by_kd_differs_from_cross_entropy_and_leaves_the_teacher_alone():
    torch.manual_seed(0)
    model, teacher = models.build("resnet20", 3).double(), models.build("resnet20", 3).double()
    before = state(teacher)
    batch = batch_of(draws(6, 3, 8, 8))
    plain = criteria.prospr(model, [batch], objectives.CrossEntropy(), steps=1)
    taught = criteria.prospr(model, [batch], objectives.KD(teacher), steps=1)
    assert all(not torch.equal(score, plain[name]) for name, score in taught.items())
    only_labels = criteria.prospr(model, [batch], objectives.KD(teacher, alpha=0), steps=1)
    for name, score in only_labels.items():
        torch.testing.assert_close(score, plain[name], rtol=1e-9, atol=1e-12)
    assert_equal(teacher.state_dict(), before)


def test_configs_make_what_they_say():
    teacher = network(0)
    kd = objectives.KDConfig(temperature=10, alpha=0.95, cache=True).objective(teacher)
    assert (kd.teacher, kd.temperature, kd.alpha, kd.needs) == (teacher, 10, 0.95, {"index"})
    taught, alone = objectives.TfKDSelfConfig().objective(teacher), objectives.TfKDRegConfig().objective()
    assert (taught.teacher, taught.temperature, taught.alpha, taught.multiplier) == (teacher, 6, 0.95, 50)
    assert (alone.teacher, alone.temperature, alone.alpha, alone.multiplier) == (None, 20, 0.1, 100)
    assert alone.confidence == 0.99
    assert taught.classes == alone.classes == 100


@pytest.mark.parametrize("classes", [5, 100])
def test_tf_kd_weighs_as_much_for_any_number_of_classes(classes: int):
    labels, draw = torch.arange(4), torch.Generator().manual_seed(0)
    logits = torch.randn(4, classes, generator=draw, dtype=torch.float64)
    batch = Batch(logits, labels, labels)
    for config, per_class in ((objectives.TfKDSelfConfig(alpha=1), 0.5), (objectives.TfKDRegConfig(alpha=1), 1.0)):
        distils = isinstance(config, objectives.TfKDSelfConfig)
        objective = config.objective(torch.zeros_like) if distils else config.objective()
        literal = objectives.TfKD(torch.zeros_like if distils else None, alpha=1, multiplier=per_class * classes)
        assert objective(lambda images: images, batch)["tf_kd"] == pytest.approx(
            float(literal(lambda images: images, batch)["tf_kd"]), rel=1e-12
        )


def test_every_objective_has_a_name_and_a_label_of_its_own():
    labels = [config.label for config in objectives.OBJECTIVES.values()]
    assert len(set(labels)) == len(labels) == 8


def test_pskd_remembers_in_half_precision_when_asked():
    whole, half = objectives.PSKD(0.8), objectives.PSKDConfig(half_memory=True).objective()
    batch = batch_of(draws(6, 3))
    for objective in (whole, half):
        objective.setup(info(), CPU)
        objective.begin_epoch(0, 2)
        objective(itself, batch)
        objective.begin_epoch(1, 2)
    memory = half.state_dict()["memory"]
    assert memory.dtype == torch.float16
    assert torch.equal(memory, whole.state_dict()["memory"].half())
    again = batch_of(draws(6, 3, seed=1))
    expected, found = whole(itself, again), half(itself, again)
    assert found["ps_kd"].dtype == torch.float64
    torch.testing.assert_close(found["ps_kd"], expected["ps_kd"], rtol=1e-3, atol=0)
    assert not torch.equal(found["ps_kd"], expected["ps_kd"])
    resumed = objectives.PSKD(0.8, half_memory=True)
    resumed.load_state_dict({"memory": memory}, lambda index, epoch: batch)
    resumed.begin_epoch(1, 2)
    half.load_state_dict({"memory": memory}, lambda index, epoch: batch)
    assert_equal(resumed(itself, again), half(itself, again))


def test_half_memory_left_out_is_the_config_of_before():
    assert canonical(objectives.PSKDConfig()) == {"kind": "PSKDConfig", "alpha": 0.8}
    assert canonical(objectives.PSKDConfig(half_memory=True))["half_memory"] is True


def test_predictions_are_summed_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]).log()
    sums = {name: float(value) for name, value in prediction_statistics(logits, torch.tensor([0, 1, 0])).items()}
    three_quarters = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert sums["correct"] == 2
    assert sums["entropy"] == pytest.approx(three_quarters + math.log(2), rel=1e-6)
    assert sums["max_probability"] == pytest.approx(0.75 + 0.5 + 1, rel=1e-6)
    assert sums["cross_entropy"] == pytest.approx(-math.log(0.75) - math.log(0.5), rel=1e-6)


def test_statistics_add_up_over_batches_in_float64():
    logits, labels = draws(10, 4).float(), torch.arange(10) % 4
    whole = prediction_statistics(logits, labels)
    halves = [prediction_statistics(logits[part], labels[part]) for part in (slice(0, 3), slice(3, 10))]
    for name, value in whole.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(halves[0][name] + halves[1][name], value, rtol=1e-7, atol=0)
    assert prediction_statistics(logits.bfloat16(), labels)["entropy"].dtype == torch.float64
