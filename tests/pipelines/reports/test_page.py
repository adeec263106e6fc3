import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

import pipelines.reports
from pipelines.reports.page import (
    TEMPLATES,
    Block,
    Charts,
    Commands,
    Details,
    Items,
    KeyFigure,
    Picture,
    Section,
    Table,
    Text,
    Verbatim,
    code,
    strong,
    unusable_images,
    write_page,
)

SIGNS = """<b> & "c" 'd'"""
ESCAPED = "&lt;b&gt; &amp; &#34;c&#34; &#39;d&#39;"
FOLDER = Path(pipelines.reports.__file__).parent / "templates"
PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"

BLOCKS = {
    "text": Text(SIGNS),
    "items": Items([SIGNS]),
    "table": Table([SIGNS], [[SIGNS]]),
    "legend": Picture(title=SIGNS, image=b"", legend=[(SIGNS, SIGNS)]),
    "commands": Commands([(SIGNS, SIGNS)], links=[(SIGNS, SIGNS)]),
    "verbatim": Verbatim(SIGNS),
    "details": Details(SIGNS, [Text(SIGNS)]),
    "inner": Text("say " + code(SIGNS) + " and " + strong(SIGNS)),
    "unusable": unusable_images([(SIGNS, SIGNS)]),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_whatever_text_says_it_is_no_markup(block):
    html = Section(SIGNS, [block]).html()
    assert ESCAPED in html
    assert "<b> &" not in html
    assert SIGNS not in html


def test_charts_are_markup_already():
    assert "<svg><path/></svg>" in Charts([Markup("<svg><path/></svg>")]).html()


def test_a_page_is_one_file_with_its_parts_in_their_order(tmp_path):
    path = write_page(
        str(tmp_path / "a <run>"),
        heading="job & preset",
        figures=[KeyFigure("loss", "5.0", "nats")],
        sections=[
            Section("First", [Picture(title="Red", image=Image.new("RGB", (2, 2), "red"))]),
            Section("Second", []),
        ],
    )
    page = Path(path).read_text()
    order = ("<title>a &lt;run&gt;</title>", "job &amp; preset", "5.0", "First", "data:image/png", "Second")
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert not any(sign in page for sign in ("{{", "{%", "<link", "<script", "http://", "https://"))


def test_a_section_of_no_title_has_no_heading():
    assert "<h2>" not in Section("", [Text("more of the same")]).html()


def test_others_show_blocks_of_their_own_without_a_template_here():
    @dataclass(frozen=True)
    class Gauge(Block):
        share: float

        def html(self) -> Markup:
            return Markup("<meter value={}></meter>").format(self.share)

    assert "<meter value=0.25></meter>" in Section("Depth", [Gauge(0.25)]).html()


def test_what_a_template_asks_for_and_does_not_get_is_an_error():
    with pytest.raises(UndefinedError):
        TEMPLATES.get_template("table.html").render(block=Text("no rows"))


def test_every_template_is_shipped_with_the_package():
    patterns = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]["package-data"]["pipelines.reports"]
    files = [path.name for path in FOLDER.iterdir()]
    assert files
    assert not [
        name for name in files if not any(fnmatch(f"templates/{name}", pattern) for pattern in patterns)
    ]
