"""Draw charts of sweeps and ablations as SVG: heat maps of two parameters, learning curves, parallel
coordinates, rows of dots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.reports.chart_style import COLOURS, FAINT, GRID, INK, as_svg, chart_style, titled_axes

SIDE = 160
"""Pixels along a side of a heat map; each has the colour of the nearest trial."""

BEST, WORST = "viridis", "viridis_r"

WIDE = 8.8
"""Width in inches of a chart that fills a row of the page: its text is then as large as in other charts."""

LEGEND_LINE = 0.17
"""Height in inches of one line of the legend below a chart."""

PAPER = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
"""Background of text that is written over lines and colours."""

MARGIN = 0.12
"""Margin of a heat map around the trials, as a share of their range."""


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether values are positive and span so wide a range that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) / min(values) >= 5


@chart_style()
def heat_map(
    title: str,
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    values: Sequence[float | None],
    notes: Sequence[str],
    *,
    lower_is_better: bool,
) -> Markup:
    """Draw the objective over two parameters: each pixel has the colour of the nearest trial with a value.

    Args:
        title: Above the chart.
        x: Name of the horizontal parameter, and its value in each trial.
        y: Name of the vertical parameter, and its value in each trial.
        values: Value of the objective in each trial. None: the trial is drawn as a grey cross.
        notes: Text next to each trial.
        lower_is_better: Whether low values get the colour of good ones.
    """
    from matplotlib.colors import Normalize

    figure, axes = titled_axes(title, (5.6, 4.2))
    scaled = [_Scale(x[1]), _Scale(y[1])]
    places = np.stack([scale.of(column) for scale, column in zip(scaled, (x[1], y[1]), strict=True)], 1)
    known = np.array([value is not None for value in values])
    if known.any():
        numbers = np.array([value for value in values if value is not None], float)
        axis = (np.arange(SIDE) + 0.5) / SIDE * (1 + 2 * MARGIN) - MARGIN
        grid = np.stack(np.meshgrid(axis, axis), -1)
        nearest = ((grid[:, :, None] - places[known]) ** 2).sum(-1).argmin(-1)
        image = axes.imshow(
            numbers[nearest],
            origin="lower",
            extent=(-MARGIN, 1 + MARGIN, -MARGIN, 1 + MARGIN),
            aspect="auto",
            cmap=WORST if lower_is_better else BEST,
            norm=Normalize(numbers.min(), numbers.max()),
            interpolation="nearest",
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
    for place, is_known, note in zip(places, known, notes, strict=True):
        axes.plot(
            *place,
            marker="o" if is_known else "X",
            markersize=5 if is_known else 8,
            color="white",
            markeredgecolor=INK,
        )
        right = place[0] > 0.8
        axes.annotate(
            note,
            tuple(place),
            xytext=(-6 if right else 6, 4),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            color=INK,
            bbox=PAPER,
        )
    axes.set_xlim(-MARGIN, 1 + MARGIN)
    axes.set_ylim(-MARGIN, 1 + MARGIN)
    axes.set_xticks(*scaled[0].ticks())
    axes.set_yticks(*scaled[1].ticks())
    axes.set_xlabel(x[0])
    axes.set_ylabel(y[0])
    return as_svg(figure, title)


@chart_style()
def learning_curves(title: str, curves: Sequence[tuple[str, Sequence[tuple[int, float]], bool]]) -> Markup:
    """Draw the objective over steps, a line for each trial.

    Args:
        title: Above the chart.
        curves: (name, "" for none; (step, value) pairs; whether the trial was finished: the others are
            dashed).
    """
    named = sum(bool(name) for name, _, _ in curves)
    figure, axes = titled_axes(title, (WIDE, 3.2 + LEGEND_LINE * named))
    colours = iter(COLOURS * (1 + len(curves) // len(COLOURS)))
    for name, pairs, complete in curves:
        style: dict[str, Any] = {"color": next(colours)} if name else {"color": FAINT, "alpha": 0.6}
        axes.plot(*zip(*pairs, strict=True), label=name or None, linestyle="-" if complete else "--", **style)
    axes.set_xlabel("step")
    axes.grid()
    if named:
        figure.legend(loc="outside lower left")
    return as_svg(figure, title)


@chart_style()
def parallel_coordinates(
    title: str,
    columns: Sequence[tuple[str, Sequence[Any]]],
    objective: str,
    values: Sequence[float | None],
    complete: Sequence[bool],
    *,
    lower_is_better: bool,
) -> Markup:
    """Draw a line for each trial through its parameters to its objective; better ones are darker.

    Args:
        title: Above the chart.
        columns: (parameter, its values); values that are not numbers are spaced evenly.
        objective: Name of the last axis.
        values: Value of the objective in each trial; trials without one are left out.
        complete: Whether each trial was finished; the others are dashed.
        lower_is_better: Whether the last axis is reversed, so that good values are at the top.
    """
    import matplotlib

    shown = [index for index, value in enumerate(values) if value is not None]
    figure, axes = titled_axes(title, (max(WIDE, 1.6 + 1.7 * (len(columns) + 1)), 3.6))
    if not shown:
        return as_svg(figure, title)
    numbers = [float(value) for value in values if value is not None]
    scales = [_Scale([column[index] for index in shown]) for _, column in columns] + [
        _Scale(numbers, logarithmic=False)
    ]
    heights = [
        scale.of([column[index] for index in shown])
        for scale, (_, column) in zip(scales[:-1], columns, strict=True)
    ]
    last = scales[-1].of(numbers)
    heights.append(1 - last if lower_is_better else last)
    colours = matplotlib.colormaps[BEST]
    for line in np.argsort(heights[-1]).tolist():  # The best trial is drawn last, over the others.
        goodness = float(heights[-1][line])
        axes.plot(
            range(len(heights)),
            [height[line] for height in heights],
            color=colours(0.9 * (1 - goodness)),
            linewidth=1.2 + 1.6 * goodness,
            linestyle="-" if complete[shown[line]] else "--",
            alpha=0.9,
        )
    for place, scale in enumerate(scales):
        axes.axvline(place, color=GRID, linewidth=1, zorder=0)
        positions, labels = scale.ticks(digits=4 if place == len(columns) else 2)
        if place == len(columns) and lower_is_better:
            positions = [1 - position for position in positions]
        for position, label in zip(positions, labels, strict=True):
            axes.annotate(
                label,
                (place, position),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                va="center",
                bbox=PAPER,
            )
    axes.set_xticks(range(len(heights)), [*(name for name, _ in columns), objective])
    axes.set_yticks([])
    axes.set_ylim(-0.08, 1.08)
    axes.set_xlim(-0.15, len(heights) - 0.5)
    axes.spines["left"].set_visible(False)
    return as_svg(figure, title)


@chart_style()
def dot_rows(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    others: Sequence[float | None],
    *,
    labels: tuple[str, str],
) -> Markup:
    """Draw a row of dots for each name, with one dot per value and a stroke at their mean, and the reference
    values in a second chart.

    Args:
        title: Above the chart.
        names: Names of the rows, from the top.
        values: Values of each row, such as those of several seeds; a row may have none.
        others: A reference value for each row, drawn on a second axis. None: the row has none.
        labels: Labels of the two axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, 0.9 + 0.34 * len(names)))
    axes, beside = figure.subplots(1, 2, sharey=True)
    axes.set_title(title)
    places = np.arange(len(names))
    for place, found in zip(places, values, strict=True):
        axes.plot(
            found, [place] * len(found), "o", color=COLOURS[0], markersize=5, alpha=0.65, markeredgewidth=0
        )
        if found:
            axes.plot([np.mean(found)] * 2, [place - 0.28, place + 0.28], color=COLOURS[0], linewidth=2)
    there = [(value, place) for value, place in zip(others, places, strict=True) if value is not None]
    if there:
        beside.plot(*zip(*there, strict=True), "D", color=COLOURS[1], markersize=5)
    for one, label in zip((axes, beside), labels, strict=True):
        one.set_xlabel(label)
        one.grid()
    beside.tick_params(left=False)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return as_svg(figure, title)


class _Scale:
    """Maps values to [0, 1]: numbers linearly or by their logarithm, anything else evenly in order of
    appearance.
    """

    def __init__(self, values: Sequence[Any], *, logarithmic: bool | None = None) -> None:
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        self._names = None if numeric else list(dict.fromkeys(str(value) for value in values))
        self._log = numeric and (is_logarithmic(values) if logarithmic is None else logarithmic)
        if self._names is None:
            self._low, self._high = self._raw(min(values)), self._raw(max(values))

    def _raw(self, value: float) -> float:
        return math.log(value) if self._log else float(value)

    def of(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """Return the positions of values."""
        if self._names is not None:
            return np.array(
                [self._names.index(str(value)) / max(1, len(self._names) - 1) for value in values], float
            )
        span = self._high - self._low
        return np.array([(self._raw(value) - self._low) / span if span else 0.5 for value in values], float)

    def ticks(self, digits: int = 2) -> tuple[list[float], list[str]]:
        """Return positions and labels of the ticks."""
        if self._names is not None:
            return [index / max(1, len(self._names) - 1) for index in range(len(self._names))], self._names
        if self._high == self._low:
            return [0.5], [f"{math.exp(self._low) if self._log else self._low:.{digits}g}"]
        places = [0.0, 1 / 3, 2 / 3, 1.0]
        raw = [self._low + place * (self._high - self._low) for place in places]
        return places, [f"{math.exp(value) if self._log else value:.{digits}g}" for value in raw]
