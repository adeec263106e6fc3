"""Draw charts of a run's metrics: as SVG for a page, or several in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from pipelines.reports.chart_style import COLOURS, FAINT, as_png, as_svg, chart_style, titled_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.2, 2.7)
"""Width and height of a chart, in inches."""
HEIGHT_IN_ROWS = 3.1
MOST_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; a baseline is drawn dashed and grey."""

    name: str
    x: ArrayLike
    y: ArrayLike
    baseline: bool = False

    band: tuple[ArrayLike, ArrayLike] | None = None
    """Smallest and largest values around `y`, such as those of several seeds."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over steps. Values that are not finite leave gaps; more than 500 points are averaged
    in groups.
    """

    title: str
    lines: Sequence[Line]
    """Lines without a finite value are left out."""
    x_label: str = "step"
    points: bool = False
    """The horizontal axis is a quantity with few values, which are marked. It is logarithmic if the largest
    value is at least 8 times the smallest."""
    percent: bool = False
    """Values are shares."""
    from_zero: bool = False
    """The vertical axis starts at 0."""
    log: bool = False
    """The vertical axis is logarithmic."""


@chart_style()
def chart_svg(chart: Chart) -> Markup:
    """Draw a chart as an element of a page."""
    figure, axes = titled_axes(chart.title, SIZE)
    _draw(axes, chart)
    return as_svg(figure, chart.title)


@chart_style()
def charts_png(charts: Sequence[Chart]) -> bytes:
    """Draw charts side by side, two in a row, as a PNG."""
    from matplotlib.figure import Figure

    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(SIZE[0] * columns, HEIGHT_IN_ROWS * rows))
    for place, chart in enumerate(charts, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(chart.title)
        _draw(axes, chart)
    return as_png(figure)


def _draw(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    colours = iter(COLOURS * (1 + len(chart.lines) // len(COLOURS)))
    for line in chart.lines:
        x, y = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
        if not np.isfinite(y).any():
            continue
        style: dict[str, Any] = (
            {"color": FAINT, "linestyle": "--"} if line.baseline else {"color": next(colours)}
        )
        # A line through one or two points could not be seen.
        marker = "o" if chart.points or np.isfinite(y).sum() < 3 else ""
        axes.plot(x, y, label=line.name, marker=marker, **style)
        if line.band is not None:
            low, high = (
                _thinned(np.asarray(line.x, dtype=float), np.asarray(edge, dtype=float))[1]
                for edge in line.band
            )
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set_xlabel(chart.x_label)
    axes.grid()
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
        axes.legend()


def _thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reduce to at most MOST_POINTS points, each the mean of neighbours."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])
