"""Draw with numpy: shapes as signed distances, two-coloured textures, light and shadow.

Coordinates run over [-1, 1] from left to right and from top to bottom. A distance is negative inside its
shape.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
"""float32 [H, W]: one number per pixel."""

Colour = NDArray[np.float32]
"""float32 [3]: red, green and blue in [0, 1]."""

Picture = NDArray[np.float32]
"""float32 [3, H, W]: colours in [0, 1]; colour planes, because numpy is several times as fast on long
rows."""

TEXTURES = ("plain", "stripes", "checks", "dots", "gradient", "noise")


@dataclass(frozen=True)
class Grid:
    """The coordinates of every pixel."""

    x: Field
    y: Field
    pixel: float
    """Side of a pixel in these coordinates: the width over which edges are softened."""

    @staticmethod
    def square(side: int) -> Grid:
        """The grid of a whole picture of side x side pixels."""
        axis = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(2 / side) - 1
        x, y = np.meshgrid(axis, axis)
        return Grid(x, y, 2 / side)

    def moved(
        self,
        *,
        to: tuple[float, float],
        scale: float,
        angle: float,
        mirrored: bool = False,
        stretch: float = 1.0,
    ) -> Grid:
        """Coordinates of an object that lies at `to`, is `scale` times as large and is rotated by `angle`
        (radians).
        """
        cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
        x, y = self.x - np.float32(to[0]), self.y - np.float32(to[1])
        across, down = cos * x + sin * y, cos * y - sin * x
        across *= np.float32((-1 if mirrored else 1) / stretch)
        return Grid(across, down, self.pixel / scale)

    def window(self, centre: tuple[float, float], radius: float) -> tuple[slice, slice]:
        """Rows and columns of the pixels within `radius` of a point, which are all that a small object can
        cover.
        """
        side = self.x.shape[0]

        def span(middle: float) -> slice:
            first, last = (int(np.floor((middle + reach + 1) * side / 2)) for reach in (-radius, radius))
            return slice(max(0, first), min(side, last + 2))

        return span(centre[1]), span(centre[0])


def disc(at: Grid, x: float, y: float, radius: float) -> Field:
    """Distance to a disc."""
    distance: Field = np.hypot(at.x - np.float32(x), at.y - np.float32(y)) - np.float32(radius)
    return distance


def ellipse(at: Grid, x: float, y: float, half_width: float, half_height: float, angle: float = 0.0) -> Field:
    """Approximate distance to an ellipse: exact where it is zero, scaled by the shorter half axis
    elsewhere.
    """
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, down = at.x - np.float32(x), at.y - np.float32(y)
    u = (cos * across + sin * down) / np.float32(half_width)
    v = (cos * down - sin * across) / np.float32(half_height)
    distance: Field = (np.hypot(u, v) - 1) * np.float32(min(half_width, half_height))
    return distance


def box(at: Grid, x: float, y: float, half_width: float, half_height: float, rounding: float = 0.0) -> Field:
    """Distance to an upright rectangle with rounded corners (outside its corners: the larger of the two
    sides').
    """
    across = np.abs(at.x - np.float32(x)) - np.float32(half_width - rounding)
    down = np.abs(at.y - np.float32(y)) - np.float32(half_height - rounding)
    if not rounding:
        return np.asarray(np.maximum(across, down), np.float32)
    outside = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    distance: Field = outside + np.minimum(np.maximum(across, down), 0) - np.float32(rounding)
    return distance


def convex(at: Grid, *corners: tuple[float, float]) -> Field:
    """Distance to a convex polygon, its corners given clockwise as seen."""
    distance: Field | None = None
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        nx, ny = np.float32((y1 - y0) / length), np.float32((x0 - x1) / length)
        side: Field = (at.x - np.float32(x0)) * nx + (at.y - np.float32(y0)) * ny
        distance = side if distance is None else np.maximum(distance, side)
    assert distance is not None
    return distance


def line(at: Grid, x0: float, y0: float, x1: float, y1: float, radius: float) -> Field:
    """Distance to a straight stroke with round ends."""
    dx, dy = x1 - x0, y1 - y0
    across, down = at.x - np.float32(x0), at.y - np.float32(y0)
    along = np.clip((across * np.float32(dx) + down * np.float32(dy)) / np.float32(dx * dx + dy * dy), 0, 1)
    distance: Field = np.hypot(across - along * np.float32(dx), down - along * np.float32(dy)) - np.float32(
        radius
    )
    return distance


def ring(at: Grid, x: float, y: float, radius: float, half_thickness: float) -> Field:
    """Distance to a ring."""
    return np.abs(disc(at, x, y, radius)) - np.float32(half_thickness)


def star(at: Grid, points: int, inner: float) -> Field:
    """Approximate distance to a star of radius 1 whose dents reach in to `inner`."""
    sector = np.float32(2 * np.pi / points)
    angle = np.abs(np.mod(np.arctan2(at.x, -at.y) + sector / 2, sector) - sector / 2)
    radius = np.hypot(at.x, at.y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    tip, dent = np.array([1.0, 0.0]), inner * np.array([np.cos(sector / 2), np.sin(sector / 2)])
    normal = np.array([dent[1] - tip[1], tip[0] - dent[0]]) / np.hypot(*(dent - tip))
    return np.asarray((u - 1) * np.float32(normal[0]) + v * np.float32(normal[1]), np.float32)


def union(*distances: Field) -> Field:
    """Distance to the union of shapes."""
    return np.asarray(np.minimum.reduce(distances), np.float32)


def without(distance: Field, cut: Field) -> Field:
    """Distance to a shape from which another one is cut out."""
    return np.maximum(distance, -cut)


def coverage(distance: Field, softness: float) -> Field:
    """Share of each pixel that a shape covers, in [0, 1]; its edge is `softness` wide."""
    covered: Field = np.clip(np.float32(0.5) - distance * np.float32(1 / softness), 0, 1)
    return covered


def texture(rng: np.random.Generator, at: Grid, kind: str) -> Field:
    """A pattern in [0, 1], in the coordinates of its object. It is 1 where the second colour shows."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(0.28, 0.6), rng.uniform(0, 1, 2)
    cells = rng.uniform(0, 1, (7, 7)).astype(np.float32)
    if kind == "plain":
        return np.zeros_like(at.x)
    if kind == "noise":
        smooth = Image.fromarray(cells).resize((at.x.shape[1], at.x.shape[0]), Image.Resampling.BICUBIC)
        return _unit((np.asarray(smooth, np.float32) - np.float32(0.5)) * 2 + np.float32(0.5))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = cos * at.x + sin * at.y
    if kind == "gradient":
        return _unit(u * np.float32(0.5) + np.float32(0.5))
    wave = np.float32(2 * np.pi / period)
    first = np.sin(u * wave + np.float32(6.28 * phase[0]))
    edge = np.float32(period / (2 * np.pi) / max(at.pixel * 1.5, 0.02))
    if kind == "stripes":
        return _unit(np.float32(0.5) + first * edge)
    second = np.sin((cos * at.y - sin * at.x) * wave + np.float32(6.28 * phase[1]))
    if kind == "checks":
        return _unit(np.float32(0.5) + first * second * edge)
    return _unit(np.float32(0.5) + (first + second - np.float32(0.9)) * edge)


def _unit(values: NDArray[np.floating]) -> Field:
    return np.asarray(np.clip(values, 0, 1), np.float32)


def toward(distance: Field, light: tuple[float, float], pixel: float) -> Field:
    """How far a rounded shape faces the direction `light`, in [-1, 1]; 0 in its flat middle."""
    step = 2
    rows, columns = (round(step * component) for component in (light[1], light[0]))
    slope = (shifted(distance, rows, columns) - distance) * np.float32(-1 / (step * pixel))
    rim: Field = np.clip(1 + distance * np.float32(1 / 0.28), 0, 1)
    faced: Field = np.clip(slope, -1, 1) * rim
    return faced


def shifted(field: Field, rows: int, columns: int) -> Field:
    """Move a field down by `rows` and right by `columns` pixels, repeating its edges."""
    height, width = field.shape
    down = np.clip(np.arange(height) - rows, 0, height - 1)
    right = np.clip(np.arange(width) - columns, 0, width - 1)
    return field[down][:, right]


def paint(picture: Picture, covered: Field, colours: Picture) -> None:
    """Paint colours over a picture in place, in proportion to the coverage of each pixel."""
    picture += covered * (colours - picture)


def mix(first: Colour, second: Colour, share: Field) -> Picture:
    """Mix two colours by a field."""
    return first[:, None, None] + share * (second - first)[:, None, None]


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours by a number."""
    return first + np.float32(share) * (second - first)


def draw_colour(
    rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """Draw a colour of any hue."""
    hue, grey, bright = rng.uniform(0, 1), rng.uniform(*saturation), rng.uniform(*value)
    return np.array(colorsys.hsv_to_rgb(hue, grey, bright), np.float32)


def luminance(colour: Colour) -> float:
    """Perceived brightness of a colour, in [0, 1] (Rec. 709 weights)."""
    return float(colour @ np.array([0.2126, 0.7152, 0.0722], np.float32))
