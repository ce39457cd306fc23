"""Tables stay fast when there are many runs."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.collect import METRICS, TAGS, _write_runs
from benchmarks.suites import TABLES

NUM_RUNS = 10_000
SECONDS = 5.0
SEEDS = 5

VERSIONS = json.dumps(dict.fromkeys(("python", "torch", "torchvision", "ray", "mlflow", "numpy"), "1.2.3"))


def made_up(suite: str, number: int) -> dict[str, Any]:
    """A run with as many parameters as real ones have."""
    row, seed = divmod(number, SEEDS)
    params = {f"method.part_{part}.setting": str(row % (part + 2)) for part in range(40)} | {"seed": str(seed)}
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    texts = dict.fromkeys((name for name, kind in TAGS.items() if kind is str), "some text")
    numbers = {name: kind(1000 + number % 17) for name, (_, kind) in METRICS.items()}
    labels = [*TABLES[suite].controls, *TABLES[suite].controls.values()] or ["A", "B"]
    return {
        **texts,
        **numbers,
        "run_id": f"{suite}{number:032d}"[-32:],
        "identity": f"{number:016d}",
        "suite": suite,
        "name": "a run",
        "method_label": labels[row % len(labels)],
        "seed": seed,
        "sparsity": 0.5 + row % 5 / 10,
        "workers": 1,
        "threads": 1,
        "dirty": False,
        "commit": "a" * 40,
        "versions": VERSIONS,
        "test_accuracy": 0.5 + (number * 7919 % 1000) / 2500,
        "started": started,
        "finished": started + timedelta(minutes=5),
        "params": json.dumps(params),
    }


@pytest.mark.alone
def test_all_tables_of_ten_thousand_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    each = math.ceil(NUM_RUNS / len(TABLES))
    runs = [made_up(suite, number) for suite in TABLES for number in range(each)]
    _write_runs(tmp_path / "runs.parquet", runs)
    began = time.process_time()
    assert tables.main(["--runs", str(tmp_path / "runs.parquet"), "--out", str(tmp_path / "tables")]) == 0
    took = time.process_time() - began
    assert len(list((tmp_path / "tables").iterdir())) == 3 * len(TABLES)
    shown = capsys.readouterr().out
    assert all(f"# {table.title}" in shown for table in TABLES.values())
    assert took < SECONDS
    print(f"{took:.1f} s for {len(runs)} runs in {len(TABLES)} tables")
