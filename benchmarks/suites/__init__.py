"""Suites: which runs make which table of the papers. One file a table; `SUITES` and `TABLES` have them by name."""

from collections.abc import Callable

from benchmarks.suites import demo, every_method
from benchmarks.suites.epsd import (
    TABULATED,
    epsd_ablations,
    epsd_cifar10,
    epsd_cifar100,
    epsd_cub,
    epsd_imagenet,
    epsd_tiny_imagenet,
)
from benchmarks.suites.pdd import pdd
from benchmarks.suites.prune_then_distill import prune_then_distill
from benchmarks.suites.suite import Budget, Line, Suite, experiments, table_of
from benchmarks.suites.table import Column, Table, own

__all__ = ["SUITES", "TABLES", "Budget", "Column", "Line", "Suite", "Table", "experiments", "own", "table_of"]

SUITES: dict[str, Callable[..., Suite]] = {
    "demo": demo.demo,
    "every_method": every_method.every_method,
    "epsd_cifar10": epsd_cifar10,
    "epsd_cifar100": epsd_cifar100,
    "epsd_tiny_imagenet": epsd_tiny_imagenet,
    "epsd_imagenet": epsd_imagenet,
    "epsd_cub": epsd_cub,
    "epsd_ablations": epsd_ablations,
    "prune_then_distill": prune_then_distill,
    "pdd": pdd,
}
"""Name -> function (reduced, places...) -> Suite."""


def _tables() -> dict[str, Table]:
    """Of every suite, whole and reduced; those of the demo and of every_method are their own."""
    found = {}
    for name, make in SUITES.items():
        more = {"sparsities": TABULATED} if name.startswith("epsd_") else {}
        found |= {suite.name: table_of(suite) for suite in (make(**more), make(reduced=True, **more))}
    return {**found, "demo": demo.TABLE, "every_method": every_method.TABLE}


TABLES = _tables()
