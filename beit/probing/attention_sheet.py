"""The picture of `beit.probing.attention`: a row a point, a map a head."""

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
"""From no attention to the most, evenly spaced; lightness grows all the way, so that the order survives in
grey."""


def attention_sheet(shown: Sequence[PointAttention], names: Sequence[str], *, side: int = 180) -> Image.Image:
    """A row a point: the image with the asking patch in red, the mean over heads on it, every head's map, the
    patches that hold most.

    Each map goes from 0 to its own largest weight, which stands below it; below the mean stands the class
    token's, too, and below the kept patches how many even weights would keep. Patches are enlarged as
    squares, without smoothing.

    Args:
        shown: From `beit.probing.attention.look`, an image each, all of one size and model.
        names: What to call each image.
        side: About the side of a picture, in pixels: the nearest multiple of the patches along a side is
            taken.
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
        "asking patch",
        "mean over heads",
        *(f"head {number + 1}" for number in range(heads)),
        f"{KEPT_MASS:.0%} of the mean",
    ]
    return table(list(zip(titles, columns, strict=True)), side=side, captions=dict(enumerate(captions)))


def _percent(share: float) -> str:
    """Short enough for a caption, with a digit behind the point where it counts."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def heat(weights: NDArray[np.float32], zoom: int) -> Pixels:
    """Weights [grid, grid] as colours, the largest the lightest, each patch a square of `zoom` pixels."""
    scaled = weights / max(float(weights.max()), 1e-30)
    at = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(scaled, at, channel) for channel in COLOURS.T], axis=-1)
    squares: Pixels = np.rint(colours).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    return squares


def overlay(image: Pixels, weights: NDArray[np.float32]) -> Pixels:
    """The colours of `heat` over a grey copy of an image [side, side, 3], of which the side is a multiple of
    the grid.
    """
    grey = image.mean(axis=2, keepdims=True)
    blended: Pixels = (0.4 * grey + 0.6 * heat(weights, image.shape[0] // weights.shape[0])).astype(np.uint8)
    return blended


def mark(image: Pixels, patch: tuple[int, int], zoom: int) -> Pixels:
    """The image with one patch as a red square, in a white frame."""
    marked = Image.fromarray(image)
    row, column = patch
    left, top = column * zoom, row * zoom
    draw = ImageDraw.Draw(marked)
    draw.rectangle((left - 1, top - 1, left + zoom, top + zoom), RED, WHITE)
    return np.asarray(marked)
