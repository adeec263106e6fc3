"""Draw segmentations: image, ground truth and prediction side by side, and a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.images.pictures import FONT_PX, GAP_PX, INK, LINE_PX, PAPER, Pixels, contact_sheet
from beit.segmentation.annotations import IGNORED
from beit.tokenizer.pictures import colour_of

IGNORED_COLOUR = (225, 225, 225)


def palette(classes: int) -> Pixels:
    """Return a colour for each class, uint8 [K, 3]. A class has the same colour whatever their number."""
    colours: Pixels = colour_of(np.arange(1, classes + 1)[None])[0]
    return colours


def paint(labels: NDArray[np.integer], classes: int) -> Pixels:
    """Colour labels [H, W], uint8 [H, W, 3]; IGNORED is light grey."""
    colours = np.vstack([palette(classes), np.array([IGNORED_COLOUR], np.uint8)])
    painted: Pixels = colours[np.where(labels == IGNORED, classes, labels)]
    return painted


def segmentation_sheet(
    images: Sequence[Pixels],
    truths: Sequence[NDArray[np.integer]],
    predictions: Sequence[NDArray[np.integer]],
    names: Sequence[str],
    *,
    side: int = 240,
) -> Image.Image:
    """Draw one row per image: image, ground truth, prediction; below the rows, the colours of the classes.

    Args:
        images: uint8 [H, W, 3] each.
        truths: [H, W] each: classes from 0, or IGNORED.
        predictions: [H, W] each: classes from 0.
        names: K class names.
        side: Longer side of a picture, in pixels.
    """
    pictures, captions = [], []
    for image, truth, predicted in zip(images, truths, predictions, strict=True):
        counted = truth != IGNORED
        right = (
            f"{(truth == predicted)[counted].mean():.0%} right"
            if counted.any()
            else "nothing to compare with"
        )
        pictures += [image, paint(truth, len(names)), paint(predicted, len(names))]
        captions += ["image", "truth", f"predicted, {right}"]
    rows = contact_sheet(pictures, columns=3, side=side, captions=captions)
    present = np.unique(np.concatenate([labels.ravel() for labels in (*truths, *predictions)]))
    entries = [
        (names[number], tuple(palette(len(names))[number].tolist()))
        for number in present
        if number != IGNORED
    ]
    if (present == IGNORED).any():
        entries.append(("ignored", IGNORED_COLOUR))
    return _with_legend(rows, entries)


def _with_legend(rows: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """Add a legend below a sheet: a coloured square and a name for each entry, as many on a line as fit."""
    font = ImageFont.load_default(FONT_PX)
    places, x, y = [], GAP_PX, rows.height + GAP_PX
    for name, _ in entries:
        width = FONT_PX + GAP_PX + int(font.getlength(name)) + 2 * GAP_PX
        if x > GAP_PX and x + width > rows.width:
            x, y = GAP_PX, y + LINE_PX + GAP_PX
        places.append((x, y))
        x += width
    sheet = Image.new("RGB", (rows.width, y + LINE_PX + GAP_PX), PAPER)
    sheet.paste(rows, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top, left + FONT_PX, top + FONT_PX), fill=colour)
        draw.text((left + FONT_PX + GAP_PX, top - 1), name, INK, font)
    return sheet
