"""Allocation: from scores to masks. Counts are exact, and ties are broken in the same way everywhere."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.choose import choose
from compression.criteria.base import Criterion, rounds_of
from compression.masks import Masks, prunable
from compression.objectives.base import Objective

Allocate = Callable[[Mapping[str, Tensor], float | Fraction], Masks]

Schedule = Literal["exponential", "linear"]

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda density, part: density**part,
    "linear": lambda density, part: 1 - (1 - density) * part,
}
"""(final density, share of the rounds done) -> density."""


def global_topk(scores: Mapping[str, Tensor], sparsity: float | Fraction) -> Masks:
    """Keep the N - floor(N * sparsity) highest of all N scores, over all layers together.

    scores: parameter name -> scores of the parameter's shape, higher is kept.
    sparsity: share removed, in [0, 1). The decimal number as written counts: 0.9 of 10 weights removes 9.
    Of equal scores, the earlier one (parameter order, then flat index) is pruned first.
    """
    check_sparsity(sparsity)
    check_finite(scores)
    everything = Masks.ones_like(scores)
    return remove_lowest(scores, everything, math.floor(everything.num_weights * Fraction(str(sparsity))))


def per_layer(scores: Mapping[str, Tensor], sparsity: float | Fraction) -> Masks:
    """Keep the same share of every layer, N - floor(N * sparsity) weights in total. `_by_share` rounds the counts."""
    return _by_share(scores, sparsity, {name: score.numel() for name, score in scores.items()})


def erk(scores: Mapping[str, Tensor], sparsity: float | Fraction) -> Masks:
    """Keep the densities of Erdos-Renyi-Kernel (Evci et al., RigL, ICML 2020, arXiv 1911.11134).

    A layer's density is proportional to (out + in + kernel height + kernel width) / (their product). Its count is
    therefore proportional to the sum of its shape, and at most the whole layer; the rest is shared by the other layers
    in the same proportions. N - floor(N * sparsity) weights are kept in total. `_by_share` rounds the counts.
    """
    return _by_share(scores, sparsity, {name: sum(score.shape) for name, score in scores.items()})


ALLOCATIONS: dict[str, Allocate] = {"global": global_topk, "per_layer": per_layer, "erk": erk}


def _by_share(scores: Mapping[str, Tensor], sparsity: float | Fraction, shares: Mapping[str, int]) -> Masks:
    """Keep counts per layer in proportion to `shares`, at most the whole layer, exact in total.

    The r-th best weight of a layer (r = 1, 2...) has the priority share / (r - 1/2), and the highest priorities over
    all layers are kept. This is Webster's method of apportionment: counts are nearest to their shares, and a higher
    sparsity never gives a layer more. Ties are broken as in `global_topk`.
    """
    check_finite(scores)
    if blind := without_scores(scores):
        raise ValueError(blind_layers(blind))
    priorities = {}
    for name, score in scores.items():
        # Sorted from the lowest up, so that of equal scores the earlier one gets the worse rank.
        order = torch.argsort(score.detach().reshape(-1), stable=True)
        ranks = torch.arange(score.numel(), 0, -1, dtype=torch.float64, device=score.device)
        flat = torch.empty_like(ranks)
        flat[order] = shares[name] / (ranks - 0.5)
        priorities[name] = flat.view(score.shape)
    return global_topk(priorities, sparsity)


def remove_lowest(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], num: int) -> Masks:
    """`masks` without the `num` weights that have the lowest scores of those kept so far.

    scores: parameter name -> scores, with the names and shapes of the masks.
    Of equal scores, the earlier one (order of `scores`, then flat index) is removed first.
    """
    check_finite(scores)
    if set(scores) != set(masks):
        raise ValueError(f"scores and masks differ in {', '.join(sorted(set(scores) ^ set(masks)))}")
    flat = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    keep = torch.cat([masks[name].reshape(-1) for name in scores]).to(flat.device)
    alive = keep.nonzero().squeeze(1)
    if not 0 <= num <= len(alive):
        raise ValueError(f"cannot remove {num} weights: only {len(alive)} are left")
    keep[alive[torch.argsort(flat[alive], stable=True)[:num]]] = False
    parts = keep.split([score.numel() for score in scores.values()])
    return Masks({name: part.view(scores[name].shape).clone() for name, part in zip(scores, parts, strict=True)})


def without_scores(scores: Mapping[str, Tensor]) -> list[str]:
    """The layers all of whose scores are 0 (or -inf, where they are pruned): nothing tells their weights apart."""
    return [name for name, score in scores.items() if not (score.isfinite() & (score != 0)).any()]


def blind_layers(names: Sequence[str]) -> str:
    """Says which layers have no scores but 0, why that may be, and what to do."""
    return (
        f"all scores are 0 in {', '.join(names)}: nothing tells their weights apart. Often a factor after them starts "
        "at 0, so that no gradient reaches them, as the last BatchNorm of each block of timm's ResNets does: build the "
        "network without it (timm.create_model has zero_init_last=False), or choose the criterion magnitude"
    )


def check_pruned(masks: Masks, scores: Mapping[str, Tensor], sparsity: float, *, allow_empty: bool = False) -> Masks:
    """`masks`, after `Masks.check`; a layer that is empty because all its scores are 0 is named with this cause."""
    blind = set(without_scores(scores)) & set(masks.empty_layers())
    if blind and not allow_empty:
        raise ValueError(blind_layers(sorted(blind)))
    return masks.check(sparsity, allow_empty=allow_empty)


def share_of_ties(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> float:
    """Share of all weights that have the lowest score kept, where some of them are kept and others are not.

    Their order decides between them, not their scores. For masks of `global_topk`.
    """
    flat, kept = (torch.cat([values[name].flatten().cpu() for name in scores]) for values in (scores, masks))
    tied = flat == flat[kept].min() if kept.any() else torch.zeros_like(kept)
    return float(tied.sum() / len(tied)) if (tied & ~kept).any() else 0.0


def rounded_share(num_alive: int, share: float = 0.2) -> int:
    """round(share * num_alive), halves to even: the number of weights that a round of Prune-then-Distill removes."""
    return round(Fraction(str(share)) * num_alive)


def share_rounded_up(num_alive: int, share: float = 0.2) -> int:
    """ceil(share * num_alive): the number of weights that a round of the lottery ticket removes."""
    return math.ceil(Fraction(str(share)) * num_alive)


def rounds_for_ratio(ratio: float, share: float = 0.2) -> int:
    """The number of rounds, each removing `share` of the remaining weights, that comes nearest to removing `ratio`.

    0.36, 0.59 and 0.79 are 2, 4 and 7 rounds of 20 %. Of two equally near numbers, the smaller one.
    """
    check_sparsity(ratio)
    if not 0 < share < 1:
        raise ValueError(f"the share removed in each round must lie in (0, 1), not {share}")
    kept, wanted, rounds = 1 - Fraction(str(share)), Fraction(str(ratio)), 0
    while 1 - kept ** (rounds + 1) <= wanted:
        rounds += 1
    below, above = wanted - (1 - kept**rounds), (1 - kept ** (rounds + 1)) - wanted
    return rounds if below <= above else rounds + 1


def iterate(
    criterion: Criterion,
    sparsity: float,
    rounds: int,
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    schedule: Schedule = "exponential",
    allocate: Allocate = global_topk,
    allow_empty: bool = True,
) -> Masks:
    """Prune in rounds: `rounds` times, score the pruned network and prune some more of it.

    criterion: if it has a parameter `masks`, it scores the pruned network itself; otherwise it scores a copy of the
        model with the pruned weights set to zero.
    schedule: the density after round t of T is density ** (t / T), or 1 - sparsity * t / T if "linear".

    A pruned weight stays pruned unless the criterion declares otherwise (FORCE). Rounds before the last keep
    ceil(N * density) weights, or what the criterion declares; the last one keeps exactly what `allocate` gives for
    `sparsity`. The model is not changed.
    ValueError, unless allow_empty, if a layer ends empty that had no scores but 0 in the first round.
    """
    takes_masks, pruned_return = "masks" in inspect.signature(criterion).parameters, rounds_of(criterion).pruned_return
    masks: Masks | None = None
    blind: list[str] = []
    for share in _sparsities(sparsity, rounds, schedule, criterion, model):
        if takes_masks:
            scores: Mapping[str, Tensor] = criterion(model, batches, objective, masks=masks)
        else:
            scores = criterion(_pruned(model, masks), batches, objective)
        if masks is None:
            blind = without_scores(scores)
        elif not pruned_return:
            scores = {name: s.masked_fill(~masks[name], -math.inf) for name, s in scores.items()}
        masks = allocate(scores, share)
    assert masks is not None
    if not allow_empty and (empty := set(blind) & set(masks.empty_layers())):
        raise ValueError(blind_layers(sorted(empty)))
    return masks


def check_rounds(rounds: int) -> None:
    """ValueError unless there is at least one round."""
    if rounds < 1:
        raise ValueError(f"the number of rounds must be 1 or more, not {rounds}")


def _sparsities(
    sparsity: float, rounds: int, schedule: Schedule, criterion: Criterion, model: nn.Module
) -> list[float | Fraction]:
    """The sparsity after each round: fractions for whole numbers of weights, then the requested sparsity."""
    check_sparsity(sparsity)
    check_rounds(rounds)
    density = float(1 - Fraction(str(sparsity)))
    density_after = choose("schedule", schedule, SCHEDULES)
    num_weights = sum(w.numel() for w in prunable(model).values())
    # Rounded, so that a product that is a whole number except for its last bits counts as whole.
    wanted = [round(num_weights * density_after(density, t / rounds), 6) for t in range(1, rounds)]
    kept = [max(1, rounds_of(criterion).num_kept(num)) for num in wanted]
    return [*(Fraction(num_weights - num, num_weights) for num in kept), sparsity]


def _pruned(model: nn.Module, masks: Masks | None) -> nn.Module:
    """The model, or a copy of it with the weights pruned by `masks` set to zero."""
    if masks is not None:
        model = copy.deepcopy(model)
        for name, mask in masks.items():
            model.get_parameter(name).data.masked_fill_(~mask, 0)
    return model


def check_sparsity(sparsity: float | Fraction) -> None:
    """ValueError unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity is the share of weights removed and must lie in [0, 1), not {sparsity}"
            + (f"; for {sparsity} % write {sparsity / 100:g}" if 1 < sparsity < 100 else "")
        )


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """ValueError that names the layers with scores that are not a number."""
    if not scores:
        raise ValueError("there are no scores to allocate")
    wrong = [name for name, score in scores.items() if torch.isnan(score).any()]
    if wrong:
        raise ValueError(f"scores are not a number in {', '.join(wrong)}: the loss overflowed while scoring")
