"""A table as LaTeX, for a paper that has `\\usepackage{booktabs}`."""

import re
from collections.abc import Sequence

from benchmarks.formats import made_by, notes, parts
from benchmarks.rows import Row
from benchmarks.suites import Table

ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after \\ a bracket would be the option of a line break
        "±": r"$\pm$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        "\N{MINUS SIGN}": "$-$",
        "†": r"\textdagger{}",
        "‡": r"\textdaggerdbl{}",
        "§": r"\S{}",
        "¶": r"\P{}",
        "‖": r"$\|$",
        "°": r"$^{\circ}$",
        "\n": " ",
        "`": "'",
    }
)
"""Characters that mean something in LaTeX, or that its usual fonts do not have."""


def as_latex(name: str, table: Table, rows: Sequence[Row], source: str = "results/runs.parquet") -> str:
    """A floating table, by booktabs, labelled tab:NAME. The ids of a row's runs are a comment at its end."""
    shown = parts(table, rows)

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(escape(cell) for cell in cells) + r" \\"

    body = [
        f"{line([part.readable[number] for part in shown])} % {' '.join(row.run_ids)}"
        for number, row in enumerate(rows)
    ]
    return "\n".join(
        [
            f"% {made_by(name, source)}",
            r"\begin{table}",
            r"\centering",
            r"\footnotesize",
            rf"\caption{{{escape(table.title)}}}",
            rf"\label{{tab:{escape_label(name)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if part.number else 'l' for part in shown)}}}",
            r"\toprule",
            line([part.heading for part in shown]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip\parbox{{\linewidth}}{{{escape(note)}}}" for note in notes(table, rows)),
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """`text` as LaTeX shows it letter by letter; the sign of a negative number is a minus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text).translate(ESCAPED)


def escape_label(name: str) -> str:
    """A name for \\label and \\ref: letters, digits and hyphens, which every package leaves alone."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
