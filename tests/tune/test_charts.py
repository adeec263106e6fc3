import re
from xml.etree import ElementTree

import pytest

from pipelines.reports.chart_style import COLOURS, FAINT
from pipelines.reports.charts import Chart, Line, chart_svg
from tune.charts import dot_rows, heat_map, is_logarithmic, learning_curves, parallel_coordinates

RATIOS, RATES, LOSSES = [0.2, 0.4, 0.6], [1e-4, 1e-3, 1e-2], [5.0, 4.0, None]
CURVES = [("0: best", [(1, 6.0), (2, 5.0)], True), ("", [(1, 6.5)], False)]
CHARTS = {
    "heat map": heat_map(
        "heat & map", ("ratio", RATIOS), ("lr", RATES), LOSSES, ["a", "b", "failed"], lower_is_better=True
    ),
    "learning curves": learning_curves("learning", CURVES),
    "parallel coordinates": parallel_coordinates(
        "a line a trial", [("lr", RATES)], "loss", LOSSES, [True, False, True], lower_is_better=True
    ),
    "dots": dot_rows("dots", ["row", "other"], [[27.0, 28.0], []], [82.0, None], labels=("here", "there")),
}


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_charts_of_sweeps_look_like_those_of_runs(chart):
    run = chart_svg(Chart(title="loss", lines=[Line(name="loss", x=[1, 2], y=[2.0, 1.0])]))
    title, label = (max(sizes(run)), min(sizes(run)))
    assert title > label
    assert sizes(chart) <= {title, label, label - 1}, "notes within a chart are a point smaller"
    assert ElementTree.fromstring(chart).get("aria-label") in chart_titles(chart)


def sizes(svg: str) -> set[float]:
    """The sizes of letters, in points."""
    return {float(size) for size in re.findall(r"font(?:-size)?: ?(\d+(?:\.\d+)?)px", svg)}


def chart_titles(svg: str) -> list[str]:
    return [
        "".join(text.itertext()) for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")
    ]


def test_named_curves_have_colours_and_a_legend_and_the_others_are_grey():
    svg = CHARTS["learning curves"]
    assert "0: best" in chart_titles(svg)
    assert f"stroke: {COLOURS[0]}" in svg
    assert f"stroke: {FAINT}" in svg
    assert COLOURS[1] not in svg


def test_values_over_decades_are_spread_by_their_logarithm():
    assert is_logarithmic(RATES)
    assert not is_logarithmic(RATIOS)
    assert not is_logarithmic([0.0, 1.0])
    assert {"0.0001", "0.01"} <= set(chart_titles(CHARTS["heat map"]))


def test_a_chart_of_trials_without_a_value_can_be_drawn():
    assert "failed" in heat_map("h", ("x", [1.0]), ("y", [2.0]), [None], ["failed"], lower_is_better=True)
    assert "<svg " in parallel_coordinates("p", [("x", [1.0])], "loss", [None], [True], lower_is_better=True)
    assert "<svg " in learning_curves("none", [])
