"""The style of all charts (colours, fonts, grid), and their conversion to SVG for a page, or to PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e4e4e4"
COLOURS = (
    "#1f5fa8",
    "#c2571a",
    "#2e8b57",
    "#7b4fa3",
    "#a8323e",
    "#2fa5c7",
    "#d69b1e",
    "#d1659f",
    "#7a5230",
    "#8a9a2b",
)
"""Colours of lines, in order. Grey is for baselines."""

DPI = 110
"""Resolution of PNG files."""

SETTINGS: Any = {
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    # Names stay readable where they cover lines.
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.borderpad": 0.2,
    "svg.fonttype": "none",  # Text, not outlines: files are smaller, and the page's font is used.
}


@contextmanager
def chart_style() -> Iterator[None]:
    """Use this style to make, draw and save figures. It is a context manager, or a decorator of a function
    that does all three.
    """
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        yield


def titled_axes(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Make a figure of one chart, `size` inches wide and high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def as_svg(figure: Figure, title: str) -> Markup:
    """Return a figure as an element of a page; screen readers read its title."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The salt keeps names within one chart apart from those of another chart on the same page.
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    beginning = Markup('<svg role="img" aria-label="{}" ').format(title)
    return beginning + Markup(svg[svg.index("<svg ") + len("<svg ") :])  # nosec B704 # matplotlib escapes text


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
