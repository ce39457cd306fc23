"""Every network of our own, in both memory layouts and at the sizes of real data: hours, `pytest -m slow`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from compression import export, gates, models, students
from compression.channels import TOLERANCE, channel_groups, difference
from compression.compaction import compact
from compression.models.registry import MODELS
from tests.small_networks import half_of_the_filters, images


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_gated_compacted_and_exported(name: str, layout: torch.memory_format, size: int, tmp_path: Path):
    shape = (3, size, size)
    torch.manual_seed(0)
    model = models.build(name, 10).double().eval().to(memory_format=layout)  # type: ignore[call-overload]
    gated = copy.deepcopy(model)
    handle = gates.attach(gated, channel_groups(model, shape), shape)
    with torch.no_grad():
        for group in handle.groups:
            handle.of(group).m[::2][1:] = -0.5
    half_of_the_filters(model).attach(model).close()
    for pruned in (gated, model):
        small, x = compact(pruned, shape), images((3, size + 11, size))
        with torch.no_grad():
            assert difference(pruned(x), small(x)) <= TOLERANCE
    assert export.to_torch_export(compact(gated).float(), shape, tmp_path / "small.pt2") <= export.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [*students.STAGED, "vgg11", "vgg16", "vgg19_ptd"])
def test_a_student_inherits(name: str, layout: torch.memory_format):
    torch.manual_seed(0)
    teacher = models.build(name, 10).to(memory_format=layout)  # type: ignore[call-overload]
    masks = half_of_the_filters(teacher)
    student = models.build(**students.plan(teacher, masks)["arch"])
    students.inherit(student, teacher, masks)
    assert student.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
