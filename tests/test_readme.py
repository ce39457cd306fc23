"""The README says what the committed results say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def rows(text: str) -> list[list[str]]:
    """The cells of Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_table_in_the_readme_is_the_committed_one():
    # Of the commit, not of the working tree: `make demo` puts the reader's own runs there.
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
