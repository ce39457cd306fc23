"""Tables as LaTeX: escaped, with as many cells in each row as the table has columns."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.latex import as_latex, escape
from benchmarks.rows import build
from benchmarks.suites import TABLES
from tests.test_tables import run_of


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b & 95 %", r"a\_b \& 95 \%"),
        ("97.50 ± 0.10", r"97.50 $\pm$ 0.10"),
        ("-0.97, x-0, 1e-05, 3-4", "$-$0.97, x-0, 1e-05, 3-4"),
        (r"\input{x}$#^~", r"\textbackslash{}input\{x\}\$\#\textasciicircum{}\textasciitilde{}"),
        ("a\nb", "a b"),
    ],
)
def test_text_is_escaped(text: str, latex: str):
    assert escape(text) == latex


def checked(text: str) -> list[list[str]]:
    """The cells of the rows of a table; fails where LaTeX would."""
    assert text.isascii()
    bare = re.sub(r"\\[\\{}$&#%_]", "", text)
    depth = 0
    for letter in re.sub(r"%.*", "", bare):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert re.sub(r"%.*", "", bare).count("$") % 2 == 0
    opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert opened == closed[::-1]
    columns = re.search(r"\\begin{tabular}{(\w+)}", text)
    assert columns
    rows = [line.split(r"\\ ")[0].removesuffix(r"\\") for line in text.splitlines() if line.startswith("  ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    assert {len(row) for row in cells} == {len(columns[1])}
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    return cells


def test_odd_names_and_every_mark_keep_a_table_whole():
    table = dataclasses.replace(TABLES["demo"], title=r"50 % of {\bad} $names$ & more_", notes=("a # b ~ c",))
    label = r"[x] & 5% \y {z} $ # _ ^ ~ | < >"
    runs = [
        run_of(method_label=label, seed=0, test_accuracy=0.5, run_id="one", dirty=True, hardware="CPU", threads=1),
        run_of(method_label=label, seed=1, test_accuracy=0.6, run_id="two", commit="abc", hardware="H100", threads=2),
    ]
    text = as_latex("my_table", table, build(table, runs))
    heading, row = checked(text)
    assert heading[:2] == ["method", "sparsity"]
    assert row[0].startswith(r"{[}x] \& 5\% \textbackslash{}y \{z\} \$ \# \_")
    assert row[3] == r"55.00 $\pm$ 7.07"
    assert r"\\ % one two" in text
    assert r"\label{tab:my-table}" in text


@pytest.mark.parametrize("path", sorted((tables.RESULTS / "tables").glob("*.tex")), ids=lambda path: path.name)
def test_committed_tables_are_whole(path: Path):
    found = checked(path.read_text())
    assert len(found) == len(path.with_suffix(".csv").read_text().splitlines())
    assert len(found) > 2
