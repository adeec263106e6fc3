"""Render a scene: background, objects, light, and the mask of every object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.scenes import drawing
from pipelines.scenes.drawing import Field, Grid, box, convex, disc, ring, star, union

if TYPE_CHECKING:
    pass
from pipelines.scenes.objects import CLASS_NAMES, OBJECTS, OVERSAMPLING


@dataclass(frozen=True)
class Scene:
    """A rendered scene of S x S pixels."""

    image: NDArray[np.uint8]
    """uint8 [S, S, 3], RGB."""

    label: int
    """Kind of the main object: index into `CLASS_NAMES`."""

    mask: NDArray[np.uint8]
    """uint8 [S, S]: label + 1 where the main object shows, 0 elsewhere. No pixel is ignored."""


def render_scene(rng: np.random.Generator, *, image_size: int = 64, label: int | None = None) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of all random choices. They do not depend on the size: the same generator gives the same
            scene.
        image_size: S, side of the image in pixels.
        label: Kind of the main object. None: drawn at random, all kinds equally likely.
    """
    drawn = int(rng.integers(len(CLASS_NAMES)))
    label = drawn if label is None else label
    grid = Grid.square(image_size * OVERSAMPLING)
    angle = rng.uniform(-2.6, -0.5)
    light = (float(np.cos(angle)), float(np.sin(angle)))

    picture, ground = _background(rng, grid)
    materials = _materials(rng, ground)
    for _ in range(int(rng.integers(1, 4))):
        _distractor(rng, grid, picture, ground, near=0.3)

    scale, stretch = rng.uniform(0.5, 0.82), rng.uniform(0.85, 1.15)
    free = 1.08 - scale
    place = (float(rng.uniform(-free, free)), float(rng.uniform(-free, free)))
    at = grid.moved(
        to=place, scale=scale, angle=rng.uniform(-0.35, 0.35), mirrored=bool(rng.integers(2)), stretch=stretch
    )
    parts = OBJECTS[label](at, rng)
    outline = union(*(distance for distance, _ in parts))
    side, reach, dark = grid.x.shape[0], rng.uniform(0.03, 0.1), rng.uniform(0.25, 0.55)
    shadow = drawing.shifted(
        outline, round(-light[1] * reach * side / 2), round(-light[0] * reach * side / 2)
    )
    drawing.paint(picture, drawing.coverage(shadow, 0.22) * np.float32(dark), np.zeros((3, 1, 1), np.float32))
    strength = np.float32(rng.uniform(0.25, 0.5))
    patterns = [
        drawing.mix(first, second, drawing.texture(rng, at, kind)) for first, second, kind in materials
    ]
    for distance, material in parts:
        facing = drawing.toward(distance, light, at.pixel) * strength
        lit = patterns[material] * (1 + facing)
        drawing.paint(picture, drawing.coverage(distance, at.pixel * 1.5), lit)
    shown = drawing.coverage(outline, at.pixel)

    for _ in range(int(rng.integers(0, 3))):
        hidden, window = _distractor(rng, grid, picture, ground, near=0.85)
        shown[window] *= 1 - hidden

    glow = 1 + np.float32(rng.uniform(0.0, 0.2)) * (
        grid.x * np.float32(light[0]) + grid.y * np.float32(light[1])
    )
    picture *= glow
    levels = np.clip(_shrink(picture, OVERSAMPLING) * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    mask = np.where(_shrink(shown, OVERSAMPLING) >= 0.5, label + 1, 0).astype(np.uint8)
    return Scene(np.ascontiguousarray(levels.transpose(1, 2, 0)), label, mask)


def _background(rng: np.random.Generator, grid: Grid) -> tuple[drawing.Picture, float]:
    """Draw a background, and return its mean luminance."""
    first = drawing.draw_colour(rng, saturation=(0.05, 0.55), value=(0.25, 1.0))
    second: drawing.Colour = np.clip(first + rng.uniform(-0.28, 0.28, 3).astype(np.float32), 0.05, 1)
    kind = str(rng.choice(["horizon", "hills", *drawing.TEXTURES[1:]]))
    if kind not in ("horizon", "hills"):
        scene = drawing.mix(
            first,
            drawing.blend(first, second, 0.6),
            drawing.texture(rng, grid.moved(to=(0, 0), scale=rng.uniform(0.6, 1.2), angle=0.0), kind),
        )
        return scene, drawing.luminance(drawing.blend(first, second, 0.4))
    level = rng.uniform(-0.1, 0.6)
    sky = drawing.mix(
        first,
        drawing.blend(first, np.ones(3, np.float32), 0.5),
        np.clip((grid.y + 1) / np.float32(1.2 + level), 0, 1),
    )
    bumps = np.float32(rng.uniform(0.06, 0.2)) * np.sin(
        grid.x * np.float32(rng.uniform(2, 5)) + np.float32(rng.uniform(0, 6))
    )
    depth = grid.y - np.float32(level) - (bumps if kind == "hills" else 0)
    # A floor is seen in perspective: its pattern shrinks toward the horizon.
    away = np.asarray(1 / np.maximum(depth + np.float32(0.35), np.float32(0.2)), np.float32)
    floor = Grid(grid.x * away, away * np.float32(1.5), grid.pixel * 3)
    pattern = drawing.texture(rng, floor, str(rng.choice(["plain", "checks", "stripes", "noise"])))
    drawing.paint(
        sky, drawing.coverage(-depth, grid.pixel), drawing.mix(second, second * np.float32(0.8), pattern)
    )
    return sky, drawing.luminance(drawing.blend(first, second, 0.5))


def _materials(rng: np.random.Generator, ground: float) -> list[tuple[drawing.Colour, drawing.Colour, str]]:
    """Two colours and a texture for each of an object's four materials: body, second, dark or light detail,
    opposite detail.
    """
    main = _contrasting(rng, ground, 0.2)
    body = (
        main,
        np.clip(main * np.float32(rng.choice([0.55, 1.5])) + np.float32(0.04), 0, 1),
        str(rng.choice(drawing.TEXTURES)),
    )
    other = _contrasting(rng, ground, 0.15)
    second = (other, other * np.float32(0.7), str(rng.choice(["plain", "plain", "stripes", "gradient"])))
    dark = drawing.draw_colour(rng, saturation=(0.2, 0.6), value=(0.1, 0.3))
    bright = drawing.draw_colour(rng, saturation=(0.0, 0.35), value=(0.85, 1.0))
    return [body, second, (dark, dark, "plain"), (bright, bright, "plain")]


def _contrasting(rng: np.random.Generator, ground: float, distance: float) -> drawing.Colour:
    """Draw a contrasting colour: the first of several that is `distance` brighter or darker than the
    ground.
    """
    draws = [drawing.draw_colour(rng, saturation=(0.35, 0.95), value=(0.3, 1.0)) for _ in range(6)]
    return next((colour for colour in draws if abs(drawing.luminance(colour) - ground) > distance), draws[-1])


def _distractor(
    rng: np.random.Generator, grid: Grid, picture: drawing.Picture, ground: float, *, near: float
) -> tuple[Field, tuple[slice, slice]]:
    """Paint a small plain shape, farther than `near` from the middle; return its coverage and window."""
    angle, away, size = rng.uniform(0, 2 * np.pi), rng.uniform(near, 1.2), rng.uniform(0.1, 0.22)
    centre = (
        float(np.clip(away * np.cos(angle), -0.95, 0.95)),
        float(np.clip(away * np.sin(angle), -0.95, 0.95)),
    )
    turn, kind, points = rng.uniform(-np.pi, np.pi), int(rng.integers(5)), int(rng.integers(4, 7))
    colour = _contrasting(rng, ground, 0.12)
    window = grid.window(centre, size * 1.3)
    at = Grid(grid.x[window], grid.y[window], grid.pixel).moved(to=centre, scale=size, angle=turn)
    if kind == 0:
        distance = disc(at, 0, 0, 0.9)
    elif kind == 1:
        distance = box(at, 0, 0, 0.8, 0.8)
    elif kind == 2:
        distance = convex(at, (-0.9, 0.7), (0.0, -0.95), (0.9, 0.7))
    elif kind == 3:
        distance = ring(at, 0, 0, 0.65, 0.25)
    else:
        distance = star(at, points, 0.45)
    covered = drawing.coverage(distance, at.pixel * 1.5)
    shaded = drawing.mix(
        colour, colour * np.float32(0.7), np.clip(at.y * np.float32(0.5) + np.float32(0.5), 0, 1)
    )
    drawing.paint(picture[:, *window], covered, shaded)
    return covered, window


def _shrink(picture: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Average blocks of factor x factor pixels: [..., H, W] -> [..., H / factor, W / factor]."""
    # Adding slices is several times faster than a mean over two short axes.
    total = sum(
        picture[..., row::factor, column::factor] for row in range(factor) for column in range(factor)
    )
    return np.asarray(total, np.float32) * np.float32(1 / factor**2)
