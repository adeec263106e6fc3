"""Draw the results of `beit.probing.attention`: one row per point, one map per head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.images.pictures import Pixels, table
from beit.pretraining.pictures import cover
from beit.probing.attention import KEPT_MASS, PointAttention

RED, WHITE = (235, 30, 30), (255, 255, 255)
COLOURS = np.array([(8, 8, 32), (66, 20, 104), (158, 42, 99), (226, 93, 60), (250, 175, 52), (252, 252, 190)])
"""From no attention to the largest, evenly spaced. Lightness increases throughout, so the order is visible in
grey as well."""


def attention_sheet(shown: Sequence[PointAttention], names: Sequence[str], *, side: int = 180) -> Image.Image:
    """Draw one row per point: the query patch, the mean over heads, each head's map, the kept patches.

    The query patch is a red square on the image. The mean is drawn over the image. Each map is scaled from 0
    to its own largest weight, which is written below it; below the mean, the class token's weight is written
    too. The last column shows the smallest set of patches that holds 60% of the mean; below it is written how
    many patches that takes, and how many it would take if all weights were equal. Patches are enlarged as
    squares, without smoothing.

    Args:
        shown: From `beit.probing.attention.look`, one per image, all of one size and model.
        names: A name for each image.
        side: Approximate side of a picture in pixels; rounded to a multiple of the patches along a side.
    """
    heads, grid = shown[0].weights.shape[1:3]
    zoom = max(1, round(side / grid))
    side = zoom * grid
    columns: list[list[Pixels]] = [[] for _ in range(heads + 3)]
    captions: list[list[str]] = [[] for _ in columns]
    for one, name in zip(shown, names, strict=True):
        image = np.asarray(Image.fromarray(one.image).resize((side, side), Image.Resampling.BICUBIC))
        for number, ((x, y), patch) in enumerate(zip(one.points, one.patches, strict=True)):
            maps = one.weights[number]
            mean = maps.mean(0)
            kept = one.kept[number]
            pictures = [
                mark(image, patch, zoom),
                overlay(image, mean),
                *(heat(head, zoom) for head in maps),
                cover(image, ~kept),
            ]
            even = 1 / (maps[0].size + 1)  # With the class token.
            lines = [
                f"{x:g},{y:g}  {name}",
                f"most {_percent(mean.max())}, class {_percent(max(0, 1 - mean.sum()))}",
            ]
            lines += [
                f"most {_percent(head.max())}, {head.max() / even:.{head.max() < 10 * even:d}f} x even"
                for head in maps
            ]
            lines += [f"{kept.sum()} of {kept.size}, even {math.ceil(KEPT_MASS * kept.size)}"]
            for place, (picture, line) in enumerate(zip(pictures, lines, strict=True)):
                columns[place].append(picture)
                captions[place].append(line)
    titles = [
        "query patch",
        "mean over heads",
        *(f"head {number + 1}" for number in range(heads)),
        f"{KEPT_MASS:.0%} of the mean",
    ]
    return table(list(zip(titles, columns, strict=True)), side=side, captions=dict(enumerate(captions)))


def _percent(share: float) -> str:
    """Format a share for a caption, with one digit after the point if it is small."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def heat(weights: NDArray[np.float32], zoom: int) -> Pixels:
    """Colour weights [grid, grid], the largest the lightest, each patch a square of `zoom` pixels."""
    scaled = weights / max(float(weights.max()), 1e-30)
    at = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(scaled, at, channel) for channel in COLOURS.T], axis=-1)
    squares: Pixels = np.rint(colours).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    return squares


def overlay(image: Pixels, weights: NDArray[np.float32]) -> Pixels:
    """Draw the colours of `heat` over a grey copy of an image [side, side, 3].

    The side is a multiple of the grid.
    """
    grey = image.mean(axis=2, keepdims=True)
    blended: Pixels = (0.4 * grey + 0.6 * heat(weights, image.shape[0] // weights.shape[0])).astype(np.uint8)
    return blended


def mark(image: Pixels, patch: tuple[int, int], zoom: int) -> Pixels:
    """Draw a red square with a white frame over one patch of an image."""
    marked = Image.fromarray(image)
    row, column = patch
    left, top = column * zoom, row * zoom
    draw = ImageDraw.Draw(marked)
    draw.rectangle((left - 1, top - 1, left + zoom, top + zoom), RED, WHITE)
    return np.asarray(marked)
