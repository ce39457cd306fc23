"""A table as CSV, Markdown and LaTeX: one list of columns, so that no form shows what another one does not."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import published
from benchmarks.differences import NOTE, Difference, compare, label_of
from benchmarks.rows import MARKS, Row, plain
from benchmarks.suites import Column, Table

NONE_KNOWN = "No number for these rows was available."


@dataclass(frozen=True)
class Part:
    """One column for readers, and one or several for programs.

    heading: for readers. names: in CSV files.
    readable: a cell for each row; "-" where a number is unknown.
    exact: the cells in CSV files of each row, as many as names; empty where unknown.
    number: aligned to the right.
    """

    heading: str
    names: Sequence[str]
    readable: Sequence[str]
    exact: Sequence[Sequence[str]]
    number: bool = True


def parts(table: Table, rows: Sequence[Row]) -> list[Part]:
    """All columns of a table but the ids of its runs."""
    return [
        *_keys(table, rows),
        _mean(table.headline, rows),
        _each("n", rows, lambda row: str(len(row.runs))),
        _each("seeds", rows, lambda row: row.seeds),
        *(_differences(table, compare(table, rows)) if table.controls or table.lines else []),
        *([_published(rows)] if table.published else []),
        *(_mean(column, rows) for column in table.columns),
    ]


def as_csv(table: Table, rows: Sequence[Row]) -> str:
    """For programs: mean and standard deviation are two columns; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    shown = parts(table, rows)
    writer.writerow([*(name for part in shown for name in part.names), "dirty", "marks", "run_ids"])
    for number, row in enumerate(rows):
        marks = [f"{name}: {text}" if text != name else name for name, text in row.marks().items()]
        marks += [row.others] if row.others else []
        end = ["" if row.dirty is None else str(row.dirty).lower(), "; ".join(marks), " ".join(row.run_ids)]
        writer.writerow([*(cell for part in shown for cell in part.exact[number]), *end])
    return buffer.getvalue()


def as_markdown(name: str, table: Table, rows: Sequence[Row], source: str = "results/runs.parquet") -> str:
    """For readers. name, source: what makes it again, and from where."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    headings, cells = readable(table, rows)
    lines = [f"# {table.title}", "", line([*headings, "runs"]), line(["---"] * (len(headings) + 1))]
    lines += [line([*own, " ".join(row.run_ids)]) for own, row in zip(cells, rows, strict=True)]
    below = [text for note in notes(table, rows) for text in (note, "")]
    return "\n".join([*lines, "", *below, made_by(name, source), ""])


def readable(table: Table, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each row, for readers; without the ids of runs."""
    shown = parts(table, rows)
    return [part.heading for part in shown], [[part.readable[number] for part in shown] for number in range(len(rows))]


def made_by(name: str, source: str) -> str:
    return f"Made by `python benchmarks/tables.py {name}` from `{source}`."


def notes(table: Table, rows: Sequence[Row]) -> list[str]:
    """What stands below a table, a paragraph each."""
    found = [*table.notes, "Means over n runs; ± is the sample standard deviation (n - 1)."]
    found += [NOTE] if table.controls or table.lines else []
    if table.published:
        known = "; ".join(f"[{number}] {text}" for text, number in published.sources(rows).items())
        found.append(f"Published: test accuracy in percent, or its change by the method. {known or NONE_KNOWN}")
    marks = [row.marks() for row in rows]
    for name, mark in MARKS.items():
        told = sorted({own[name] for own in marks if name in own} - {name, "unknown"})
        if any(name in own for own in marks):
            found.append(f"{mark.symbol} {mark.text}" + (f": {'; '.join(told)}" if told else ""))
    return found


def _keys(table: Table, rows: Sequence[Row]) -> list[Part]:
    """What makes a row; the first cell for readers also has how the row differs from others, and its marks."""

    def first(row: Row) -> str:
        marks = "".join(MARKS[name].symbol for name in row.marks())
        return " ".join(part for part in (label_of(table, row), marks) if part)

    found = []
    for number, (field, heading) in enumerate(table.rows.items()):
        values = [row.runs[0][field] for row in rows]
        exact = [[plain(value)] for value in values]
        shown = [first(row) for row in rows] if number == 0 else [plain(value) or "-" for value in values]
        found.append(Part(heading, [heading], shown, exact, not any(isinstance(value, str) for value in values)))
    return found


def _each(name: str, rows: Sequence[Row], text: Callable[[Row], str]) -> Part:
    cells = [text(row) for row in rows]
    return Part(name, [name], cells, [[cell] for cell in cells])


def _mean(column: Column, rows: Sequence[Row]) -> Part:
    """A mean over the runs of each row, with its deviation if the column asks for it."""
    names = [f"{column.name}_{kind}" for kind in (("mean", "std") if column.spread else ("mean",))]
    shown, exact = [], []
    for row in rows:
        mean, std = row.mean_and_std(column)
        text = "-" if mean is None else f"{mean:,.{column.digits}f}"
        shown.append(f"{text} ± {std:.{column.digits}f}" if column.spread and std is not None else text)
        exact.append(["" if each is None else f"{each:.{column.digits}f}" for each in (mean, std)[: len(names)]])
    return Part(column.heading, names, shown, exact)


def _published(rows: Sequence[Row]) -> Part:
    """What others print for the same method, data and network, with the number of its source in the notes."""
    numbers = published.sources(rows)
    shown, exact = [], []
    for row in rows:
        known = published.of(row)
        texts = [f"{each.text} [{numbers[published.source_of(each)]}]" for each in known]
        shown.append("; ".join(texts) or "not available")
        exact.append(["; ".join(each.text for each in known), "; ".join(map(published.source_of, known))])
    return Part("published", ["published", "published_source"], shown, exact)


def _differences(table: Table, differences: Sequence[Difference | None]) -> list[Part]:
    """The difference from the control with its interval, the number of pairs, and which row is the control."""
    digits, name = table.headline.digits, table.headline.name

    def signed(number: float) -> str:
        return f"{number:+.{digits}f}" if round(number, digits) else f"{0:.{digits}f}"

    def shown(found: Difference | None) -> str:
        if found is None or found.mean is None:
            return "-"
        ends = f"[{', '.join(map(signed, found.interval))}]" if found.interval else ""
        return " ".join(part for part in (signed(found.mean), ends, found.verdict(digits)) if part)

    def exact(found: Difference | None) -> list[str]:
        if found is None or found.mean is None:
            return ["", "", "", ""]
        ends = [signed(bound) for bound in found.interval] if found.interval else ["", ""]
        return [signed(found.mean), *ends, found.verdict(digits)]

    kinds = ("difference", "difference_low", "difference_high", "difference_verdict")
    pairs = ["" if each is None else str(each.pairs) for each in differences]
    controls = ["" if each is None else each.control for each in differences]
    return [
        Part(
            "difference from control [95 %]",
            [f"{name}_{kind}" for kind in kinds],
            [shown(each) for each in differences],
            [exact(each) for each in differences],
        ),
        Part("pairs", ["pairs"], [text or "-" for text in pairs], [[text] for text in pairs]),
        Part("control", ["control"], [text or "-" for text in controls], [[text] for text in controls], number=False),
    ]
