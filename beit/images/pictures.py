"""Sheets of pictures: images in rows, and tables with a title over each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    pass

Pixels = NDArray[np.uint8]

GAP_PX = 6
LINE_PX = 17
FONT_PX = 13
PAPER = (255, 255, 255)
INK = (34, 34, 34)
FAINT = (120, 120, 120)


def contact_sheet(
    images: Sequence[Pixels], *, columns: int, side: int, captions: Sequence[str] | None = None
) -> Image.Image:
    """Images in rows, each as high as its highest image, a caption under each.

    Args:
        images: uint8 [H, W, 3] each, of any sizes: scaled to fit a square without being distorted.
        columns: Images in a row.
        side: Longer side of an image, in pixels.
        captions: One for each image; cut to its width.
    """
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    columns = max(1, min(columns, len(images)))
    tiles = [fit(pixels, side) for pixels in images]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    below = GAP_PX + (LINE_PX if captions is not None else 0)
    sheet = Image.new(
        "RGB", (GAP_PX + columns * (side + GAP_PX), GAP_PX + sum(heights) + below * len(rows)), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    y = GAP_PX
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for place, tile in enumerate(row):
            x = GAP_PX + place * (side + GAP_PX)
            sheet.paste(tile, (x + (side - tile.width) // 2, y + (height - tile.height) // 2))
            if captions is not None:
                draw.text(
                    (x, y + height + 1), shorten(captions[number * columns + place], side, font), INK, font
                )
        y += height + below
    return sheet


def table(
    columns: Sequence[tuple[str, Sequence[Pixels]]], *, side: int, captions: Mapping[int, Sequence[str]]
) -> Image.Image:
    """Columns of pictures, a title over each and, for the columns named in `captions`, a line under each
    picture.
    """
    step, rows = side + GAP_PX, len(columns[0][1])
    sheet = Image.new(
        "RGB", (GAP_PX + len(columns) * step, GAP_PX + LINE_PX + rows * (step + LINE_PX)), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for column, (title, pictures) in enumerate(columns):
        x = GAP_PX + column * step
        draw.text((x, GAP_PX - 2), shorten(title, side, font), INK, font)
        for row, pixels in enumerate(pictures):
            y = GAP_PX + LINE_PX + row * (step + LINE_PX)
            sheet.paste(fit(pixels, side), (x, y))
            if column in captions:
                draw.text((x, y + side + 1), shorten(captions[column][row], side, font), FAINT, font)
    return sheet


def fit(pixels: Pixels, side: int) -> Image.Image:
    """Scale [H, W, 3] so that its longer side is `side`; small pictures by whole pixels, so that one sees
    what they are made of.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(
        size, Image.Resampling.NEAREST if scale >= 2 and scale == int(scale) else Image.Resampling.BICUBIC
    )


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut the text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
