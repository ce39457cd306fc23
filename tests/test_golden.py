"""The losses of every method are those of tests/golden; after a wanted change: python benchmarks/golden.py --write"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import golden
from cluster.checkpoints import open_storage

GOLDEN = json.loads(golden.FILE.read_text())


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases: they share their teachers."""
    return open_storage(tmp_path_factory.mktemp("golden"))


def test_every_method_objective_and_criterion_has_golden_losses():
    assert golden.cases().keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", golden.cases())
def test_losses_are_the_golden_ones(name: str, storage: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))
    losses = golden.losses_of(golden.cases()[name], storage)
    assert losses == pytest.approx(GOLDEN[name], rel=golden.RELATIVE_BOUND)


def test_a_difference_is_seen():
    assert golden.difference([1.0, 2.0], [1.0, 2.0]) == 0
    assert golden.difference([1.0, 2.0], [1.0, 2.5]) == pytest.approx(0.2)
    assert golden.difference([1.0], [1.0, 2.0]) == float("inf")
    assert golden.difference([1.0], None) == float("inf")
