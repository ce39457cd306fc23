"""From scores to masks: layer by layer, by Erdos-Renyi-Kernel densities, in rounds."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from compression import Batch, allocation, criteria, models, objectives
from compression.allocation import ALLOCATIONS, SCHEDULES, erk, global_topk, iterate, per_layer, remove_lowest
from compression.criteria import CRITERIA
from compression.masks import Masks, prunable
from compression.methods import EPSD, EarlyPruning, early_pruning
from pipelines.identity import canonical


def bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def some_scores(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"{place}": torch.rand(shape, generator=draw) for place, shape in enumerate(shapes)}


def resnet_shapes() -> list[tuple[int, ...]]:
    return [tuple(w.shape) for w in prunable(models.build("resnet20", 10)).values()]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(96, 5)).double()


def some_batches(num: int, classes: int = 5) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(num):
        images = torch.randn(8, 3, 8, 8, generator=draw, dtype=torch.float64)
        found.append(Batch(images, torch.randint(0, classes, (8,), generator=draw), torch.arange(8), images.flip(0)))
    return found


def test_each_layer_gives_the_same_share():
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([[10.0, 30.0], [20.0, 40.0]])}
    masks = per_layer(scores, 0.5)
    assert torch.equal(masks["a"], bools(1, 1, 0, 0))
    assert torch.equal(masks["b"], bools(0, 1, 0, 1).view(2, 2))


def test_a_share_that_is_no_whole_number_goes_to_the_nearest():
    # 20 % of 4, 5 and 6 is 0.8, 1.0 and 1.2.
    masks = per_layer(some_scores((4,), (5,), (6,)), 0.8)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_equal_scores_are_pruned_from_the_front_in_every_allocation():
    ties = {"a": torch.ones(4), "b": torch.ones(4)}
    for allocate in (per_layer, erk):
        masks = allocate(ties, 0.5)
        assert torch.equal(masks["a"], bools(0, 0, 1, 1))
        assert torch.equal(masks["b"], bools(0, 0, 1, 1))
    assert torch.equal(per_layer(ties, 0.875)["a"], bools(0, 0, 0, 0))
    assert torch.equal(per_layer(ties, 0.875)["b"], bools(0, 0, 0, 1))


def test_erk_by_hand():
    # Sums of shapes: 2 + 2 + 1 + 1 = 6, 8 + 4 = 12, 16 + 2 = 18. Of 4 + 32 + 32 = 68, 18 are kept: 1/2 of each sum.
    masks = erk(some_scores((2, 2, 1, 1), (8, 4), (16, 2)), 1 - 18 / 68)
    assert [int(mask.sum()) for mask in masks.values()] == [3, 6, 9]
    # 34 are kept: the first layer is full at 4, 30 are left for 12 + 18.
    masks = erk(some_scores((2, 2, 1, 1), (8, 4), (16, 2)), 0.5)
    assert [int(mask.sum()) for mask in masks.values()] == [4, 12, 18]


def erk_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """The usual way: raise the common factor, take out layers that are full, until none is over."""
    full: set[int] = set()
    while True:
        sizes = [math.prod(shape) for shape in shapes]
        budget = density * sum(sizes) - sum(sizes[i] for i in full)
        factor = budget / sum(sum(shape) for i, shape in enumerate(shapes) if i not in full)
        found = [1.0 if i in full else factor * sum(shape) / sizes[i] for i, shape in enumerate(shapes)]
        over = {i for i, value in enumerate(found) if value > 1}
        if not over:
            return found
        full |= over


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.98])
def test_erk_densities_of_a_resnet_are_within_a_weight_of_the_formula(sparsity: float):
    shapes = resnet_shapes()
    masks = erk(some_scores(*shapes), sparsity)
    for mask, density in zip(masks.values(), erk_densities(shapes, 1 - sparsity), strict=True):
        assert abs(int(mask.sum()) - density * mask.numel()) <= 1


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.995])
def test_layers_of_a_resnet_keep_their_share_within_a_weight(sparsity: float):
    for mask in per_layer(some_scores(*resnet_shapes()), sparsity).values():
        assert abs(int(mask.sum()) - (1 - sparsity) * mask.numel()) <= 1


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_a_higher_sparsity_gives_no_layer_more(allocate: allocation.Allocate):
    scores = some_scores((7, 3), (4, 3, 3, 3), (5, 2), (3, 3))
    num = sum(score.numel() for score in scores.values())
    last = allocate(scores, 0)
    for removed in range(1, num):
        masks = allocate(scores, Fraction(removed, num))
        assert masks.num_kept == num - removed
        assert all((masks[name] <= last[name]).all() for name in scores)
        last = masks


def test_the_lowest_of_what_is_left_are_removed():
    scores = {"a": torch.tensor([0.0, 2.0, 1.0]), "b": torch.tensor([1.0, 3.0])}
    masks = remove_lowest(scores, Masks({"a": bools(0, 1, 1), "b": bools(1, 1)}), 2)
    assert torch.equal(masks["a"], bools(0, 1, 0))
    assert torch.equal(masks["b"], bools(0, 1))
    assert list(masks) == ["a", "b"]


def test_what_cannot_be_removed_is_refused():
    scores, masks = {"a": torch.ones(3)}, Masks({"a": bools(0, 1, 1)})
    with pytest.raises(ValueError, match="cannot remove 3 weights: only 2"):
        remove_lowest(scores, masks, 3)
    with pytest.raises(ValueError, match="differ in a, b"):
        remove_lowest({"b": torch.ones(3)}, masks, 1)


def test_counts_of_a_round():
    assert [allocation.rounded_share(n) for n in (5, 7, 8, 1448)] == [1, 1, 2, 290]
    assert [allocation.share_rounded_up(n) for n in (5, 6, 7, 1448)] == [1, 2, 2, 290]
    # In floating point 0.2 * 15 is above 3.
    assert allocation.share_rounded_up(15) == 3
    assert [allocation.rounds_for_ratio(r) for r in (0, 0.05, 0.1, 0.2, 0.28, 0.36)] == [0, 0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        allocation.rounds_for_ratio(0.5, share=0)


def densities(schedule: str, sparsity: float, rounds: int) -> list[float]:
    kept = []

    def criterion(model: nn.Module, batches: list[Batch], objective: objectives.Objective) -> dict[str, Tensor]:
        weights = prunable(model)
        kept.append(sum(int(w.detach().count_nonzero()) for w in weights.values()))
        return {name: torch.arange(w.numel()).double().view(w.shape) for name, w in weights.items()}

    model = nn.Linear(100, 10)
    iterate(criterion, sparsity, rounds, model, [], objectives.CrossEntropy(), schedule)  # pyright: ignore[reportArgumentType]
    return kept


def test_schedules_by_hand():
    assert densities("exponential", 0.99, 2) == [1000, 100]
    assert densities("exponential", 0.875, 3) == [1000, 500, 250]
    assert densities("linear", 0.8, 4) == [1000, 800, 600, 400]


def test_rounds_that_cannot_be_are_refused():
    arguments = nn.Linear(2, 2), [], objectives.CrossEntropy()
    with pytest.raises(ValueError, match="1 or more, not 0"):
        iterate(criteria.magnitude, 0.5, 0, *arguments)
    with pytest.raises(ValueError, match="did you mean linear"):
        iterate(criteria.magnitude, 0.5, 2, *arguments, schedule="linaer")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        iterate(criteria.magnitude, 1.5, 2, *arguments)


def test_what_is_pruned_stays_pruned_under_scores_of_any_sign():
    alive: list[Masks] = []

    def allocate(scores, sparsity):
        alive.append(global_topk(scores, sparsity))
        return alive[-1]

    iterate(criteria.grasp, 0.9, 6, small_network(), some_batches(2), objectives.CrossEntropy(), allocate=allocate)
    for before, after in itertools.pairwise(alive):
        assert all((after[name] <= before[name]).all() for name in after)


def test_a_criterion_that_takes_masks_is_given_them_through_a_partial():
    model, batches, objective = small_network(), some_batches(1), objectives.CrossEntropy()
    plain = iterate(criteria.force, 0.9, 5, model, batches, objective)
    partial = iterate(functools.partial(criteria.force, chunk_size=None), 0.9, 5, model, batches, objective)
    assert all(torch.equal(mask, partial[name]) for name, mask in plain.items())
    other = iterate(criteria.iter_snip, 0.9, 5, model, batches, objective)
    assert any(not torch.equal(mask, other[name]) for name, mask in plain.items())


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_criterion_with_any_allocation_keeps_exact_counts(
    criterion: str, allocate: allocation.Allocate, rounds: int
):
    model, objective, config = small_network(), objectives.CrossEntropy(), CRITERIA[criterion]()
    before = copy.deepcopy(model.state_dict())
    batches = some_batches(max(1, config.num_batches(objective)))
    num = sum(w.numel() for w in prunable(model).values())
    for schedule in SCHEDULES:
        masks = iterate(config.score, 0.77, rounds, model, batches, objective, schedule, allocate)  # pyright: ignore[reportArgumentType]
        assert list(masks) == list(prunable(model))
        assert masks.num_kept == num - math.floor(num * Fraction("0.77"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class FakeSession:
    """What early pruning asks of its surroundings, with stages that are written down."""

    seed, device = 0, torch.device("cpu")

    def __init__(self) -> None:
        self.stages: dict[str, object] = {}
        self.sizes: list[int | None] = []

    def model(self) -> nn.Module:
        return small_network()

    def batches(self, objective, num, size=None):
        self.sizes.append(size)
        return some_batches(num)

    def stage(self, name, fn):
        self.stages[name] = fn()
        return self.stages[name]

    def log(self, **metrics):
        self.logged = metrics

    def train(self, name, model, objective, *, masks):
        self.masks = masks
        return model


def pruned_by(config: EarlyPruning) -> FakeSession:
    session = FakeSession()
    early_pruning(session, config)  # pyright: ignore[reportArgumentType]
    return session


def test_early_pruning_in_rounds_stores_masks_and_at_once_scores():
    once = pruned_by(EarlyPruning(criteria.SNIPConfig(), sparsity=0.8, scoring_batch_size=4))
    assert isinstance(once.stages["score"], dict)
    assert once.sizes == [4]
    rounds = pruned_by(EarlyPruning(criteria.SNIPConfig(), sparsity=0.8, rounds=3, allocation="erk"))
    assert isinstance(rounds.stages["score"], Masks)
    assert rounds.masks.num_kept == once.masks.num_kept
    expected = iterate(criteria.snip, 0.8, 3, small_network(), some_batches(1), objectives.CrossEntropy(), allocate=erk)
    assert all(torch.equal(mask, rounds.masks[name]) for name, mask in expected.items())


def test_criteria_made_for_rounds_take_their_own_number():
    assert EarlyPruning(criteria.SynFlowConfig()).num_rounds == 100
    assert EarlyPruning(criteria.FORCEConfig(rounds=7)).num_rounds == 7
    assert EarlyPruning(criteria.FORCEConfig(), rounds=1).num_rounds == 1
    assert EarlyPruning(criteria.SNIPConfig()).num_rounds == 1


def test_labels_tell_what_is_unusual():
    assert EarlyPruning(criteria.SynFlowConfig()).label == "SynFlow + CE"
    assert EarlyPruning(criteria.SNIPConfig(), allocation="erk").label == "SNIP (erk) + CE"
    assert EarlyPruning(criteria.SNIPConfig(), rounds=5, schedule="linear").label == "SNIP (5 rounds, linear) + CE"


def test_what_came_later_leaves_the_identity_of_older_runs_alone():
    assert set(canonical(EarlyPruning())) == {"kind", "criterion", "objective", "sparsity", "allow_empty"}
    assert set(canonical(EarlyPruning())["criterion"]) == {"kind", "steps", "lr", "first_order"}
    assert set(canonical(EPSD())) == {
        *("kind", "distillation", "sparsity", "inner_steps", "inner_lr", "first_order", "allow_empty")
    }
    assert canonical(EarlyPruning(rounds=2))["rounds"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"allocation": "earth"}, "no allocation 'earth'"),
        ({"schedule": "cubic"}, "no schedule 'cubic'"),
        ({"scoring_batch_size": 0}, "scoring_batch_size"),
    ],
)
def test_early_pruning_that_cannot_be_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        EarlyPruning(**wrong)  # pyright: ignore[reportArgumentType]


# ---- layers without scores, and ties


@pytest.mark.parametrize("allocate", [allocation.per_layer, allocation.erk])
def test_a_layer_without_scores_is_not_pruned_by_the_order_of_its_weights(allocate: allocation.Allocate):
    scores = {"first": torch.tensor([1.0, 2.0]), "second": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"all scores are 0 in second: .* starts at 0"):
        allocate(scores, 0.5)


def test_a_layer_that_is_empty_for_lack_of_scores_does_not_blame_the_sparsity():
    scores = {"first": torch.tensor([1.0, 2.0, 3.0]), "second": torch.zeros(3)}
    masks = allocation.global_topk(scores, 0.5)
    with pytest.raises(ValueError, match=r"all scores are 0 in second"):
        allocation.check_pruned(masks, scores, 0.5)
    assert allocation.check_pruned(masks, scores, 0.5, allow_empty=True) is masks
    scores["second"] = torch.tensor([0.1, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"at sparsity 0\.5 nothing is left of second"):
        allocation.check_pruned(masks, scores, 0.5)


@pytest.mark.parametrize(("criterion", "rounds"), [("snip", 1), ("synflow", 3)])
def test_rounds_say_which_layer_had_no_scores(criterion: str, rounds: int):
    torch.manual_seed(0)
    model = models.build("timm/resnet10t", 10)
    batch = Batch(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4))
    given = (getattr(criteria, criterion), 0.9, rounds, model, [batch], objectives.CrossEntropy())
    with pytest.raises(ValueError, match=r"all scores are 0 in .*layer1\.0\.conv1"):
        allocation.iterate(*given, allow_empty=False)
    assert allocation.iterate(*given).empty_layers()


def test_the_share_decided_by_ties():
    scores = {"first": torch.tensor([3.0, 1.0, 1.0, 0.0]), "second": torch.tensor([1.0, 2.0])}
    assert allocation.share_of_ties(allocation.global_topk(scores, 0.5), scores) == pytest.approx(3 / 6)
    assert allocation.share_of_ties(allocation.global_topk(scores, 0.7), scores) == 0
    assert allocation.share_of_ties(allocation.global_topk(scores, 0), scores) == 0
