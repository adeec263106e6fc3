import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rcParams

from pipelines.reports.chart_style import COLOURS
from pipelines.reports.charts import Chart, Line, chart_svg, charts_png

LINES = [
    Line(name="one & two", x=[1, 2, 3], y=[1.0, float("nan"), 3.0]),
    Line(name="base", x=[1], y=[2.0], baseline=True),
]


def test_a_chart_is_one_element_that_names_itself():
    svg = chart_svg(Chart(title='a "b" <c>', lines=LINES))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == 'a "b" <c>'
    assert "one & two" in "".join(root.itertext())
    assert svg.__html__() == svg, "it is markup, which a template takes as it is"


def test_a_chart_is_the_same_each_time_and_leaves_no_trace_in_matplotlib():
    before = dict(rcParams)
    chart = Chart(title="loss", lines=LINES)
    assert chart_svg(chart) == chart_svg(chart)
    assert charts_png([chart] * 3) == charts_png([chart] * 3)
    assert dict(rcParams) == before


def test_clips_of_one_chart_are_not_those_of_another():
    """Or a browser would take the first chart's clip for both."""
    charts = [chart_svg(Chart(title=title, lines=LINES)) for title in "ab"]
    names = [set(re.findall(r'<clipPath id="(\w+)"', chart)) for chart in charts]
    assert all(names)
    assert not names[0] & names[1]


@pytest.mark.parametrize("count", [1, len(COLOURS), len(COLOURS) + 1])
def test_every_line_has_its_own_colour_until_there_are_more_than_there_are_colours(count):
    lines = [Line(name=f"{number}", x=[1, 2], y=[number, number]) for number in range(count)]
    svg = chart_svg(Chart(title="many", lines=lines))
    assert len([colour for colour in COLOURS if f"stroke: {colour}" in svg]) == min(count, len(COLOURS))


def test_a_thousand_points_are_drawn_as_the_means_of_neighbours():
    x = np.arange(1000)
    svg = chart_svg(Chart(title="noise", lines=[Line(name="noise", x=x, y=(-1.0) ** x)]))
    flat = chart_svg(Chart(title="noise", lines=[Line(name="noise", x=x[:500] * 2 + 0.5, y=np.zeros(500))]))
    assert svg == flat
