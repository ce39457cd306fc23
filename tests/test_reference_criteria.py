"""Iterative criteria and counts of iterative pruning, compared with numbers from the authors' code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from compression import Batch, allocation, criteria, objectives
from compression.masks import Masks
from tests.reference_cases import Case, assert_matches

SYNFLOW = ["synflow_netA_p", "synflow_netB_p", "synflow_netA_bnshift_p"]


def empty_batch(case: Case) -> Batch:
    """A batch of zeros: SynFlow uses only its shape and dtype."""
    shape = [int(n) for n in case["input/shape"]]
    return Batch(torch.zeros(2, *shape, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), torch.arange(2))


def counting(allocate: allocation.Allocate, kept: list[int]) -> allocation.Allocate:
    """The same allocation; appends the number of kept weights of each round to `kept`."""

    def count(scores: Mapping[str, Tensor], sparsity: float | Fraction) -> Masks:
        masks = allocate(scores, sparsity)
        kept.append(masks.num_kept)
        return masks

    return count


def assert_equal_masks(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert torch.equal(found[name], mask.bool()), name


@pytest.mark.parametrize("name", SYNFLOW)
def test_synflow_scores_after_one_round(name: str):
    case = Case(name)
    scores = criteria.synflow(case.network(), [empty_batch(case)])
    assert list(scores) == list(case.group("expect/score_round0/"))
    for weight, score in case.group("expect/score_round0/").items():
        assert_matches(scores[weight], score)


@pytest.mark.parametrize("name", SYNFLOW)
def test_synflow_in_a_hundred_rounds(name: str):
    case = Case(name)
    kept: list[int] = []
    masks = allocation.iterate(
        criteria.synflow,
        0.9,
        100,
        case.network(),
        [empty_batch(case)],
        objectives.CrossEntropy(),
        allocate=counting(allocation.global_topk, kept),
    )
    assert kept == case["expect/kept_per_round"].tolist()
    assert_equal_masks(masks, case.group("expect/mask_final/"))
    assert [int(mask.sum()) for mask in masks.values()] == case["expect/kept_final_per_layer"].tolist()


@pytest.mark.parametrize("name", ["force", "iter_snip"])
def test_force_and_iter_snip_in_ten_rounds(name: str):
    case = Case("force_netB_p")
    kept: list[int] = []
    masks = allocation.iterate(
        getattr(criteria, name),
        0.9,
        10,
        case.network(),
        [case.batch("input/x", "input/y")],
        objectives.CrossEntropy(),
        allocate=counting(allocation.global_topk, kept),
    )
    assert kept == case[f"expect/{name}/kept_per_step"].tolist()
    assert_equal_masks(masks, case.group(f"expect/{name}/mask_final/"))


def magnitude_rounds(case: Case, num_of: Callable[[int], int], num_rounds: int) -> list[Masks]:
    scores = criteria.magnitude(case.network())
    masks = [Masks({name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()})]
    for _ in range(num_rounds):
        masks.append(allocation.remove_lowest(scores, masks[-1], num_of(masks[-1].num_kept)))
    return masks[1:]


def test_prune_then_distill_rounds_the_count():
    case = Case("ptd_magnitude_netA_p")
    rounds = magnitude_rounds(case, allocation.rounded_share, 7)
    assert [masks.num_kept for masks in rounds] == case["expect/kept_per_round"].tolist()
    for number, masks in enumerate(rounds, start=1):
        assert_equal_masks(masks, case.group(f"expect/round{number}/mask/"))


def test_rounds_for_the_ratios_of_prune_then_distill():
    case = Case("ptd_magnitude_netA_p")
    ratios = case["expect/rounds_for_ratio/ratio"].tolist()
    assert [allocation.rounds_for_ratio(r) for r in ratios] == case["expect/rounds_for_ratio/k"].tolist()


def test_lottery_ticket_rounds_the_count_up_and_breaks_ties_by_index():
    case = Case("lth_ties_netA_p")
    levels = magnitude_rounds(case, allocation.share_rounded_up, 5)
    assert [masks.num_kept for masks in levels] == case["expect/exact/kept"].tolist()
    for number, masks in enumerate(levels, start=1):
        assert_equal_masks(masks, case.group(f"expect/exact/level{number}/mask/"))
