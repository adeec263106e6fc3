"""Build the pages of reports from sections of blocks. Each block is data that a template shows.

A page is one HTML file that needs no other file. Templates escape text; `Markup` is HTML already and is not
escaped. A task of your own needs no template:

    Section("Rotation", [Text("Images were turned by 90°."), Table(["image", "turns"], [["a.jpg", "3"]])])
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines import storage
from pipelines.redaction import redact

if TYPE_CHECKING:
    from PIL import Image

REPORT_FILE = "report/index.html"
MOST_LISTED = 20

TEMPLATES = Environment(
    loader=PackageLoader("pipelines.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class KeyFigure:
    """A figure at the top of the page."""

    name: str
    value: str
    note: str = ""
    """What to compare it with, in a few words."""


class Block:
    """A piece of a section. Other kinds of blocks than those below override `html`."""

    template: ClassVar[str]
    """A file in `templates/`, which receives the block as `block`."""

    def html(self) -> Markup:
        """The block in HTML."""
        return Markup(TEMPLATES.get_template(self.template).render(block=self))  # nosec B704 # the template escapes


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str

    template: ClassVar[str] = "text.html"


@dataclass(frozen=True)
class Items(Block):
    """A bulleted list."""

    items: Sequence[str]

    template: ClassVar[str] = "items.html"


@dataclass(frozen=True)
class Table(Block):
    """A table: rows of cells, below titles if there are any."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    template: ClassVar[str] = "table.html"


@dataclass(frozen=True)
class Charts(Block):
    """Charts as SVG (pipelines/reports/charts.py), two side by side if the page is wide enough."""

    charts: Sequence[Markup]
    one_a_row: bool = False
    """For wide charts."""

    template: ClassVar[str] = "charts.html"


@dataclass(frozen=True, kw_only=True)
class Picture(Block):
    """A picture with a title and a legend."""

    title: str
    """Also read out by screen readers."""
    image: Image.Image | bytes
    """Pixels, or a PNG."""
    legend: Sequence[tuple[str, str]] = ()
    """(what, explanation in a sentence)."""

    template: ClassVar[str] = "picture.html"

    @property
    def source(self) -> str:
        """The PNG as a URL that holds it."""
        png = self.image
        if not isinstance(png, bytes):
            buffer = io.BytesIO()
            png.save(buffer, "PNG", optimize=True)
            png = buffer.getvalue()
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@dataclass(frozen=True)
class Commands(Block):
    """Commands to copy."""

    commands: Sequence[tuple[str, str]]
    """(what for, command)."""
    links: Sequence[tuple[str, str]] = ()
    """(what, URL), below the commands."""

    template: ClassVar[str] = "commands.html"


@dataclass(frozen=True)
class Verbatim(Block):
    """Text whose lines stay as they are, such as JSON."""

    text: str

    template: ClassVar[str] = "verbatim.html"


@dataclass(frozen=True)
class Details(Block):
    """Blocks that are hidden until their summary is clicked."""

    summary: str
    blocks: Sequence[Block]

    template: ClassVar[str] = "details.html"


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    """"": the blocks continue the section above."""
    blocks: Sequence[Block]

    def html(self) -> Markup:
        """The section in HTML."""
        return Markup(TEMPLATES.get_template("section.html").render(section=self))  # nosec B704 # as above


def write_page(
    folder: str, *, heading: str, figures: Sequence[KeyFigure] = (), sections: Sequence[Section]
) -> str:
    """Write the page of a run's or a sweep's folder; returns its path or URI.

    Args:
        folder: Folder of the run or sweep.
        heading: Heading of the page.
        figures: Key figures, shown at the top.
        sections: Sections in their order on the page.
    """
    page = TEMPLATES.get_template("page.html").render(
        title=storage.name(folder), heading=heading, figures=figures, sections=sections
    )
    path = storage.join(folder, *REPORT_FILE.split("/"))
    storage.write_text(path, redact(page))
    return path


def code(text: str) -> Markup:
    """Mark a file, command or option within a sentence."""
    return Markup("<code>{}</code>").format(text)


def strong(text: str) -> Markup:
    """Emphasise a part of a sentence or table."""
    return Markup("<b>{}</b>").format(text)


def picture_section(picture: Picture) -> Section:
    """Make a section for a picture alone."""
    return Section(picture.title, [picture])


def unusable_images(images: Sequence[tuple[str, str]]) -> Items:
    """List the first images that could not be used, each as (which, why)."""
    return Items([code(which) + f" {why}" for which, why in images[:MOST_LISTED]])
