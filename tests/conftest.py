"""The order of the test files: the slowest start first, so that two processes end at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOWEST = (
    "test_methods.py",
    "test_prepare.py",
    "test_cli.py",
    "test_resume.py",
    "test_resume_ray.py",
    "test_security.py",
    "test_strategies.py",
    "test_pipeline.py",
    "test_survival_tracking.py",
    "test_cluster.py",
    "test_golden.py",
    "test_plan.py",
    "test_ray_overhead.py",
    "test_launch_ray.py",
    "test_models.py",
    "test_tracking.py",
)
"""By their seconds; `make test` passes --no-loadscope-reorder so that xdist keeps this order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(Path(item.path).name, len(place)))
