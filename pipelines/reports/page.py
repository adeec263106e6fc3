"""What the pages of reports are put together from: one HTML file each, that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pipelines import storage

if TYPE_CHECKING:
    from PIL import Image

REPORT_FILE = "report/index.html"
MOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page with what there is to know about it."""

    title: str
    image: Image.Image
    legend: Sequence[tuple[str, str]] = ()
    """(what, explanation in a sentence)."""


def write_page(folder: str, *, heading: str, sections: Sequence[str], style: str = "") -> str:
    """Write the page of a run's or a sweep's folder, under its name; returns its path or URI.

    Args:
        folder: Whose page it is.
        heading: What it is, in words.
        sections: HTML; those that are "" are left out.
        style: CSS beside that of all pages.
    """
    page = PAGE.format(
        title=escape(storage.name(folder)),
        heading=escape(heading),
        style=STYLE + style,
        sections="\n".join(section for section in sections if section),
    )
    path = storage.join(folder, *REPORT_FILE.split("/"))
    storage.write_text(path, page)
    return path


def figure_cards(figures: Sequence[tuple[str, str, str]]) -> str:
    """Figures side by side, each as (title, value, note)."""
    cards = "".join(
        f"<div><dt>{escape(title)}</dt><dd><b>{escape(value)}</b><span>{escape(note)}</span></dd></div>"
        for title, value, note in figures
    )
    return f'<dl class="figures">{cards}</dl>'


def picture_section(picture: Picture) -> str:
    """A picture under its title, with its legend."""
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG", optimize=True)
    legend = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in picture.legend)
    return f"<h2>{escape(picture.title)}</h2>{png_element(buffer.getvalue(), picture.title)}" + (
        f'<dl class="legend">{legend}</dl>' if legend else ""
    )


def png_element(png: bytes, alternative: str) -> str:
    """A PNG within the page, as wide as the page at most; `alternative` is read out where it cannot
    be seen.
    """
    source = base64.b64encode(png).decode()
    return (
        f'<div class="wide"><img alt="{escape(alternative, quote=True)}" '
        f'src="data:image/png;base64,{source}"></div>'
    )


def listed_images(images: Sequence[tuple[str, str]]) -> str:
    """The first of images that could not be used, each as (which, why)."""
    return (
        "<ul>"
        + "".join(
            f"<li><code>{escape(which)}</code> {escape(why)}</li>" for which, why in images[:MOST_LISTED]
        )
        + "</ul>"
    )


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #222; background: #fff; max-width: 1080px;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #e4e4e4; padding-bottom: .2rem; }
p { max-width: 70ch; }
.kind { color: #666; margin: 0 0 1.2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 0 0 .6rem; }
.figures div { background: #f6f7f8; border-radius: 6px; padding: .6rem .8rem; }
.figures dt { color: #666; font-size: .85rem; }
.figures dd { margin: 0; }
.figures b { display: block; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures span { color: #666; font-size: .8rem; line-height: 1.3; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.wide { overflow-x: auto; }
.wide img { max-width: 100%; min-width: min(40rem, 250%); height: auto; }
.legend, .commands { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; max-width: 90ch; }
.legend dt, .commands dt { font-weight: 600; }
.legend dd, .commands dd { margin: 0; min-width: 0; }
pre { background: #f6f7f8; border-radius: 6px; padding: .5rem .7rem; margin: 0 0 .4rem; overflow-x: auto; font-size: .85rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { .legend, .commands { grid-template-columns: 1fr; gap: 0; } .legend dd { margin-bottom: .5rem; } }
"""  # noqa: E501

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="kind">{heading}</p>
{sections}
</body>
</html>
"""
