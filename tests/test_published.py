"""Published numbers beside ours: as printed, with their source, or "not available"."""

from __future__ import annotations

import csv
import dataclasses
from typing import Any

import pytest

from benchmarks import published
from benchmarks.formats import as_csv, as_markdown
from benchmarks.latex import as_latex
from benchmarks.published import PUBLISHED, Published
from benchmarks.rows import build
from benchmarks.suites import SUITES, own, table_of
from compression.models.registry import check_name
from tests.test_differences import run_of_line
from tests.test_tables import run_of

TABLE = dataclasses.replace(own("demo"), published=True)
RESNET20 = {"dataset": "cifar10", "model": "resnet20", "method": "dense", "method_label": "dense", "sparsity": 0.0}


def cells(**changes: Any) -> str:
    return as_markdown("x", TABLE, build(TABLE, [run_of(seed=0, test_accuracy=0.9, **(RESNET20 | changes))]))


def test_a_number_stands_beside_ours_with_its_source():
    text = cells()
    assert "| 90.00 | 1 | 0 | 91.73 [1] |" in text  # 100 - 8.27
    assert f"[1] {published.AKAMASTER}" in text
    (line,) = csv.DictReader(as_csv(TABLE, build(TABLE, [run_of(seed=0, **RESNET20)])).splitlines())
    assert (line["published"], line["published_source"]) == ("91.73", published.AKAMASTER)
    assert "91.73 {[}1]" in as_latex("x", TABLE, build(TABLE, [run_of(seed=0, **RESNET20)]))


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "cifar10-subset"}, {"model": "resnet18"}, {"method_label": "dense (DLB)"}, {"dataset": "cifar100"}],
)
def test_of_anything_else_it_is_not_available(changes: dict[str, str]):
    text = cells(**changes)
    assert "| 90.00 | 1 | 0 | not available |" in text
    assert "No number for these rows was available." in text


def test_several_numbers_have_their_own_sources():
    text = cells(dataset="cifar100", model="resnet18_small")
    assert "75.87 [1]; 75.82 [2]" in text
    assert f"[1] {published.TFKD}" in text
    assert f"[2] {published.PSKD}: pre-activation ResNet-18" in text


def test_a_change_is_shown_as_points_and_only_for_the_method_itself():
    suite = SUITES["pdd"]()
    runs = [run_of_line(suite, line, 0, 0.9) for line in suite.lines]
    table = table_of(suite)
    shown = {row.run_ids[0].removesuffix("/0"): [each.text for each in published.of(row)] for row in build(table, runs)}
    known = {label: texts for label, texts in shown.items() if texts}
    assert known == {
        "PDD, 0.7496 of macs removed, vgg16_mlp teaches vgg11_mlp on cifar10": ["-1.34 points"],
        "PDD, 0.3953 of macs removed, resnet56 teaches resnet20 on cifar10": ["+0.17 points"],
    }


@pytest.mark.parametrize("each", PUBLISHED, ids=lambda each: f"{each.printed}")
def test_every_number_has_a_source_and_can_be_shown(each: Published):
    assert each.kind in ("accuracy", "error", "change")
    assert each.source in (
        published.PSKD,
        published.TFKD,
        published.AKAMASTER,
        published.CHENYAOFO,
        published.PDD,
    )
    assert each.where["dataset"] in ("cifar10", "cifar100", "imagenet")
    check_name(str(each.where["model"]))  # ValueError: there is no such network


def test_no_number_is_there_twice():
    assert len({(*sorted(each.where.items()), each.source) for each in PUBLISHED}) == len(PUBLISHED)
