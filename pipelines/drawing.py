"""Figures: one style, rendered so that equal content gives equal bytes. Needs matplotlib when it draws."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.0, 4.5)
"""Of a figure, in inches."""

DPI = 200
"""Pixels per inch of a PNG: it is 1600 pixels wide, and stays readable at 800."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "orchard",  # the same trials give the same bytes
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and edited
    "text.parse_math": False,  # a name may contain $
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
}

WIDTH = 84
"""Characters of a title's line."""

BLUE, ORANGE, RED, GREY, BLACK = "#0072b2", "#e69f00", "#d55e00", "#8c8c8c", "#222222"
"""Of the palette of Okabe and Ito, which colour-blind people can tell apart."""


def render(
    title: str, plot: Callable[[Axes], None], kinds: Sequence[str] = ("svg",), size: tuple[float, float] = SIZE
) -> dict[str, bytes]:
    """One figure in each kind of file, of svg and png. plot: draws into the axes that it gets. size: in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    options: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": DPI}}
    files = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the person's own matplotlibrc would change the bytes
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle("\n".join(textwrap.wrap(title, WIDTH)), x=0.01, ha="left")
        plot(figure.add_subplot())
        for kind in kinds:
            data = io.BytesIO()
            figure.savefig(data, format=kind, **options[kind])
            files[kind] = data.getvalue()
    return files


def percent(value: float, place: float = 0) -> str:
    """A tick of an accuracy: 87.5%."""
    return f"{100 * value:.4g}%"


def with_prefix(value: float, place: float) -> str:
    """A tick of a cost: 41 M."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"
