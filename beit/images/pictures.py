"""Sheets of images: a contact sheet in rows, and a table with a title over each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
    """Return a sheet of images in rows, each row as high as its highest image, a caption under each image.

    Args:
        images: uint8 [H, W, 3] each, of any size; each is scaled to fit a square, its proportions kept.
        columns: Images in a row.
        side: Longer side of an image, in pixels.
        captions: One for each image, shortened to its width.
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
    """Return a sheet with one column of images under each title.

    Columns named in `captions` have a line of text under each image.
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
    """Scale [H, W, 3] so that its longer side is `side`.

    Where that is a whole factor of at least 2, pixels are repeated, so that they can be seen one by one.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(
        size, Image.Resampling.NEAREST if scale >= 2 and scale == int(scale) else Image.Resampling.BICUBIC
    )


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a text to a width in pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
