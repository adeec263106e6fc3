"""Charts of a run's metrics as SVG, to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e4e4e4"
COLOURS = ("#1f5fa8", "#c2571a", "#2e8b57", "#7b4fa3", "#a8323e")
MOST_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; a baseline is drawn dashed and grey."""

    name: str
    x: ArrayLike
    y: ArrayLike
    baseline: bool = False

    band: tuple[ArrayLike, ArrayLike] | None = None
    """Least and largest values beside `y`, such as those of several seeds."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over steps. Values that are not finite leave gaps; more than 500 points are averaged
    in groups.
    """

    title: str
    lines: Sequence[Line]
    """Those without a finite value are left out."""
    x_label: str = "step"
    points: bool = False
    """The horizontal axis is a quantity with few values, each marked; logarithmic where the largest is 8
    times the least or more."""
    percent: bool = False
    """Values are shares."""
    from_zero: bool = False
    """The vertical axis starts at 0."""
    log: bool = False
    """The vertical axis is logarithmic."""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    percent: bool = False,
    from_zero: bool = False,
    log: bool = False,
) -> str:
    """A `Chart` as an SVG element, its title also for who cannot see it."""
    from matplotlib.figure import Figure

    with _style(title):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        _draw(
            figure.add_subplot(),
            Chart(title=title, lines=lines, x_label=x_label, percent=percent, from_zero=from_zero, log=log),
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return element(buffer.getvalue(), title)


def element(svg: str, title: str) -> str:
    """An SVG file as an element of a page, named for who cannot see it."""
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1)


def chart_picture(charts: Sequence[Chart]) -> bytes:
    """Charts side by side, two in a row, as a PNG."""
    from matplotlib.figure import Figure

    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    with _style(""):
        figure = Figure(figsize=(5.2 * columns, 3.1 * rows), layout="constrained", dpi=110)
        for place, chart in enumerate(charts, 1):
            _draw(figure.add_subplot(rows, columns, place), chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(salt: str) -> Any:
    from matplotlib import rc_context

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
    }
    return rc_context(settings)


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    colours = iter(COLOURS * (1 + len(chart.lines) // len(COLOURS)))
    for line in chart.lines:
        x, y = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
        if not np.isfinite(y).any():
            continue
        style: dict[str, Any] = (
            {"color": FAINT, "linestyle": "--"} if line.baseline else {"color": next(colours)}
        )
        axes.plot(
            x,
            y,
            label=line.name,
            linewidth=1.5,
            marker="o" if chart.points or np.isfinite(y).sum() < 3 else "",
            markersize=4,
            **style,
        )
        if line.band is not None:
            low, high = (
                _thinned(np.asarray(line.x, dtype=float), np.asarray(edge, dtype=float))[1]
                for edge in line.band
            )
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set_title(chart.title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(chart.x_label, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.tick_params(colors=INK, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    if chart.points:
        values = sorted({float(value) for line in chart.lines for value in np.asarray(line.x, dtype=float)})
        if 0 < 8 * values[0] <= values[-1]:
            axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if chart.log:
        axes.set_yscale("log")
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MOST_POINTS points, each the mean of neighbours."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
