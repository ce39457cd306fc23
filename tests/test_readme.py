"""The README says what the committed results say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from compression import models

ROOT = Path(__file__).resolve().parent.parent


def rows(text: str) -> list[list[str]]:
    """The cells of Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_table_in_the_readme_is_the_committed_one():
    # Of the commit, not of the working tree: `demo.py --track` puts the reader's own runs there.
    shown = subprocess.run(
        ["git", "-C", str(ROOT), "show", "HEAD:results/tables/demo.md"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        pytest.skip("not a git checkout")
    committed = [[*cells[:-1], " ".join(run[:8] for run in cells[-1].split())] for cells in rows(shown.stdout)]
    readme = (ROOT / "README.md").read_text()
    assert len(committed) >= 3
    assert committed == rows(readme)


def test_commands_in_the_readme_name_files_that_are_there():
    words = (ROOT / "README.md").read_text().split()
    named = {word for word in words if word.startswith(("pipelines/", "benchmarks/")) and word.endswith(".py")}
    assert len(named) >= 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_example_for_ones_own_network_runs():
    [code, *_] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    model = models.build("vgg3", 10)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10

    def train(model: torch.nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    found = {"model": model, "images": images, "labels": labels, "train": train}
    exec(code, found)
    assert found["masks"].sparsity == pytest.approx(0.9, abs=1e-4)
    size = sum(parameter.numel() for parameter in found["small"].parameters())
    assert size <= sum(parameter.numel() for parameter in model.parameters())
