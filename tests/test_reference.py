"""Criteria, objectives and masks compared with numbers from the authors' code and float64 formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compression import Batch, allocation, criteria, objectives
from compression.objectives.base import distillation_divergence
from tests.reference_cases import Case, assert_matches


def assert_scores(case: Case, found: dict[str, Tensor], prefix: str) -> None:
    expected = case.group(f"{prefix}/")
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert_matches(found[name], score)


def assert_masks(case: Case, found: dict[str, Tensor], prefix: str, sparsity: float = 0.9) -> None:
    masks = allocation.global_topk(found, sparsity)
    for name, mask in case.group(f"{prefix}/").items():
        assert torch.equal(masks[name], mask.bool()), name


@pytest.mark.parametrize("net", ["netA", "netB"])
def test_snip(net: str):
    case = Case(f"snip_{net}_p")
    scores = criteria.snip(case.network(), [case.batch("input/x", "input/y")], objectives.CrossEntropy())
    assert_scores(case, scores, "expect/score")
    assert_masks(case, scores, "expect/mask_s0.90")
    assert sum(int(m.sum()) for m in allocation.global_topk(scores, 0.9).values()) == int(case["expect/kept_s0.90"])


@pytest.mark.parametrize("net", ["netA", "netB"])
def test_grasp(net: str):
    case = Case(f"grasp_{net}_p")
    halves = [case.batch(f"input/half{half}/x", f"input/half{half}/y") for half in (1, 2)]
    scores = criteria.grasp(case.network(), halves, objectives.CrossEntropy(), temperature=200)
    assert_scores(case, {name: -score for name, score in scores.items()}, "expect/score")
    assert_masks(case, scores, "expect/mask_exact_s0.80", sparsity=0.8)


@pytest.mark.parametrize("net", ["netA", "netB"])
@pytest.mark.parametrize("batches", ["same_batch", "new_batch"])
@pytest.mark.parametrize("order", ["full", "first_order"])
def test_prospr(net: str, batches: str, order: str):
    case = Case(f"prospr_{net}_p")
    num = 1 if batches == "same_batch" else 4
    given = [case.batch(f"input/batch{i}/x", f"input/batch{i}/y") for i in range(num)]
    scores = criteria.prospr(
        case.network(), given, objectives.CrossEntropy(), steps=3, lr=0.1, first_order=order == "first_order"
    )
    assert_scores(case, scores, f"expect/{batches}_{order}/score")
    assert_masks(case, scores, f"expect/{batches}_{order}/mask_s0.90")


@pytest.mark.parametrize("net", ["netA", "netB"])
@pytest.mark.parametrize(
    ("variant", "steps", "weight", "first_order", "num"),
    [
        ("i3_lam1_full", 3, 1, False, 1),
        ("i3_lam1_first_order", 3, 1, True, 1),
        ("i3_lam1_new_batch_full", 3, 1, False, 4),
        ("i1_lam1_full", 1, 1, False, 1),
        ("i0_lam1", 0, 1, False, 1),
        ("i3_lam0_full", 3, 0, False, 1),
        ("i0_lam0", 0, 0, False, 1),
    ],
)
def test_epsd_with_cskd(net: str, variant: str, steps: int, weight: float, first_order: bool, num: int):
    case = Case(f"epsd_cskd_{net}_p")
    given = [case.batch(f"input/pair{i}/x", f"input/pair{i}/y", f"input/pair{i}/x_partner") for i in range(num)]
    objective = objectives.CSKD(temperature=4, weight=weight)
    scores = criteria.prospr(case.network(), given, objective, steps=steps, lr=0.1, first_order=first_order)
    assert_scores(case, scores, f"expect/{variant}/score")
    assert_masks(case, scores, f"expect/{variant}/mask_s0.90")


def batch_of(logits: Tensor, labels: Tensor, **others: Tensor) -> Batch:
    """A batch with logits as images: the model is the identity."""
    return Batch(logits, labels, torch.arange(len(labels)), **others)


def loss_and_gradient(objective: objectives.Objective, logits: Tensor, labels: Tensor, **others: Tensor):
    logits = logits.clone().requires_grad_()
    loss = torch.stack(list(objective(lambda images: images, batch_of(logits, labels, **others)).values())).sum()
    return loss, torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    ("key", "objective"),
    [
        ("ce", objectives.CrossEntropy()),
        ("cskd_T4_lam1_total", objectives.CSKD(4, 1)),
        ("cskd_T4_lam3_total", objectives.CSKD(4, 3)),
        ("label_smoothing_0.1_uniform_eps_over_C", objectives.LabelSmoothing(0.1)),
        ("label_smoothing_0.1_others_eps_over_C_minus_1", objectives.LabelSmoothing(0.1, "others")),
    ],
)
def test_losses(key: str, objective: objectives.Objective):
    case = Case("losses_p")
    loss, gradient = loss_and_gradient(
        objective, case["input/student_logits"], case["input/labels"], paired=case["input/teacher_logits"]
    )
    assert_matches(loss, case[f"expect/{key}/loss"])
    assert_matches(gradient, case[f"expect/{key}/grad"])


def test_distillation_divergence():
    case = Case("losses_p")
    logits = case["input/student_logits"].requires_grad_()
    loss = distillation_divergence(case["input/teacher_logits"], logits, 4)
    assert_matches(loss, case["expect/cskd_T4_cls_term_only/loss"])
    assert_matches(torch.autograd.grad(loss, logits)[0], case["expect/cskd_T4_cls_term_only/grad"])


@pytest.mark.parametrize("epoch", [0, 10, 299])
def test_pskd(epoch: int):
    case = Case("losses_p")
    labels, objective = case["input/labels"], objectives.PSKD(alpha=0.8)
    before = batch_of(case["input/pskd_previous_probs"].log(), labels)
    objective(lambda images: images, before)
    objective.begin_epoch(epoch, 300)
    assert objective.alpha_now == pytest.approx(float(case[f"expect/pskd_epoch{epoch}/alpha_t"]), rel=1e-12)
    loss, gradient = loss_and_gradient(objective, case["input/student_logits"], labels)
    assert_matches(loss, case[f"expect/pskd_epoch{epoch}/loss"])
    assert_matches(gradient, case[f"expect/pskd_epoch{epoch}/grad"])
    assert_matches(objective.state_dict()["memory"], case["expect/pskd_next_prediction"])


def test_dlb():
    case = Case("losses_p")
    objective = objectives.DLB(temperature=3, weight=1)
    labels = case["input/dlb/iter1_labels"], case["input/dlb/iter2_labels"]
    pre = case["input/dlb/iter2_out_pre"].clone().requires_grad_()
    first = case["input/dlb/iter1_out"].clone().requires_grad_()
    batch = Batch(first, labels[0], torch.arange(8), second_view=pre)
    loss = torch.stack(list(objective(lambda images: images, batch).values())).sum()
    assert_matches(loss, case["expect/dlb/iter1/loss"])
    assert_matches(torch.autograd.grad(loss, first)[0], case["expect/dlb/iter1/grad_out"])

    out = case["input/dlb/iter2_out"].clone().requires_grad_()
    batch = Batch(out, labels[1], torch.arange(8), second_view=torch.zeros_like(out))
    loss = torch.stack(list(objective(lambda images: images, batch).values())).sum()
    assert_matches(loss, case["expect/dlb/iter2/loss"])
    gradients = torch.autograd.grad(loss, [out, pre, first], allow_unused=True)
    assert_matches(gradients[0], case["expect/dlb/iter2/grad_out"])
    assert_matches(gradients[1], case["expect/dlb/iter2/grad_out_pre"])
    assert gradients[2] is None
