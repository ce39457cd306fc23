"""Objectives with a teacher, and statistics of predictions, compared with numbers from the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compression import Batch, objectives
from compression.diagnostics import prediction_statistics
from compression.objectives.tf_kd import virtual_teacher
from tests.reference_cases import Case, assert_matches

Teacher = Callable[[Tensor], Tensor]

WITH_TEACHER: dict[str, Callable[[Teacher], objectives.Objective]] = {
    "kd_T10_a0.95": lambda teacher: objectives.KD(teacher, 10, 0.95),
    "kd_T4_a0.9": lambda teacher: objectives.KD(teacher),
    "tfkd_self_a0.95_T6_mult50": lambda teacher: objectives.TfKD(teacher),
    "tfkd_self_a0.95_T20_mult1": lambda teacher: objectives.TfKD(teacher, 20, multiplier=1),
    "tfkd_kd_reduction_mean_a0.9_T4": lambda teacher: objectives.TfKD(teacher, 4, 0.9, multiplier=1),
    "tfkd_reg_a0.1_T20_mult100": lambda _: objectives.TfKD(),
}


@pytest.mark.parametrize("key", WITH_TEACHER)
def test_losses_with_a_teacher(key: str):
    case = Case("losses_p")
    teacher_logits = case["input/teacher_logits"].requires_grad_()
    logits = case["input/student_logits"].requires_grad_()
    batch = Batch(logits, case["input/labels"], torch.arange(8))
    loss = torch.stack(list(WITH_TEACHER[key](lambda _: teacher_logits)(lambda images: images, batch).values())).sum()
    assert_matches(loss, case[f"expect/{key}/loss"])
    gradient, of_teacher = torch.autograd.grad(loss, [logits, teacher_logits], allow_unused=True)
    assert_matches(gradient, case[f"expect/{key}/grad"])
    assert of_teacher is None


def test_all_cases_with_a_teacher_are_compared():
    cases = {key.split("/")[1] for key in Case("losses_p").arrays if key.startswith(("expect/kd_", "expect/tfkd_"))}
    assert cases == set(WITH_TEACHER)


def test_the_target_of_the_virtual_teacher():
    case = Case("losses_p")
    target = virtual_teacher(case["input/labels"], case["input/student_logits"], temperature=20)
    assert_matches(target, case["expect/tfkd_reg_a0.1_T20_mult100/target"])


def test_the_entropy_of_the_teacher():
    case = Case("losses_p")
    sums = prediction_statistics(case["input/teacher_logits"], case["input/labels"])
    assert_matches(sums["entropy"] / 8, case["expect/entropy_teacher"])


def test_the_cross_entropy_of_the_student():
    case = Case("losses_p")
    sums = prediction_statistics(case["input/student_logits"], case["input/labels"])
    assert_matches(sums["cross_entropy"] / 8, case["expect/ce/loss"])
