"""The ten objects of the built-in scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pipelines.scenes.drawing import Field, Grid, box, convex, disc, ellipse, line, ring, union, without

if TYPE_CHECKING:
    pass

CLASS_NAMES = (
    "fish",
    "house",
    "tree",
    "boat",
    "mushroom",
    "flower",
    "mug",
    "butterfly",
    "rocket",
    "umbrella",
)
"""Names of the labels 0 to 9. In masks, 0 is the background (distractors included), and label + 1 is the main
object."""

# Scenes are drawn at twice the size and then averaged, so that edges and textures are smooth.
OVERSAMPLING = 2

Part = tuple[Field, int]
"""The distance to a part of an object, and the number of the part's material, one of the object's four."""


def _fish(at: Grid, rng: np.random.Generator) -> list[Part]:
    tall, tail = rng.uniform(0.34, 0.52), rng.uniform(0.3, 0.45)
    return [
        (convex(at, (-0.42, 0.0), (-0.78, 0.0), (-0.98, -tail)), 1),
        (convex(at, (-0.42, 0.0), (-0.98, tail), (-0.78, 0.0)), 1),
        (convex(at, (-0.3, -tall * 0.7), (0.05, -tall - 0.28), (0.3, -tall * 0.7)), 1),
        (ellipse(at, 0.15, 0.0, 0.75, tall), 0),
        (ellipse(at, 0.08, 0.08, 0.2, 0.1, 0.5), 1),
        (disc(at, 0.58, -0.1, 0.11), 3),
        (disc(at, 0.6, -0.1, 0.05), 2),
    ]


def _house(at: Grid, rng: np.random.Generator) -> list[Part]:
    wide, roof, door = (
        rng.uniform(0.55, 0.75),
        rng.uniform(0.45, 0.7),
        rng.choice([-1, 1]) * rng.uniform(0.15, 0.3),
    )
    return [
        (box(at, -door * 1.6, -0.6, 0.1, 0.28), 2),
        (box(at, 0.0, 0.4, wide, 0.5), 0),
        (convex(at, (-wide - 0.18, -0.1), (0.0, -0.2 - roof), (wide + 0.18, -0.1)), 1),
        (box(at, door, 0.6, 0.14, 0.3), 2),
        (box(at, -door * 1.1, 0.35, 0.17, 0.17), 3),
        (union(box(at, -door * 1.1, 0.35, 0.025, 0.17), box(at, -door * 1.1, 0.35, 0.17, 0.025)), 2),
    ]


def _tree(at: Grid, rng: np.random.Generator) -> list[Part]:
    trunk = (convex(at, (-0.09, 0.0), (0.09, 0.0), (0.14, 0.95), (-0.14, 0.95)), 1)
    if rng.uniform() < 0.5:
        layers = [(0.45, 0.66, 0.65), (0.05, 0.52, 0.62), (-0.32, 0.38, 0.6)]
        return [
            trunk,
            *(
                (convex(at, (-half, base), (0.0, base - high), (half, base)), 0)
                for base, half, high in layers
            ),
        ]
    blobs = [(0.0, -0.5, 0.42), (-0.42, -0.15, 0.38), (0.42, -0.12, 0.36), (0.0, 0.0, 0.4)]
    sizes = rng.uniform(0.85, 1.1, len(blobs))
    crown = union(*(disc(at, x, y, radius * size) for (x, y, radius), size in zip(blobs, sizes, strict=True)))
    return [trunk, (line(at, 0.0, 0.4, 0.3, 0.1, 0.05), 1), (crown, 0)]


def _boat(at: Grid, rng: np.random.Generator) -> list[Part]:
    mast, jib = rng.uniform(-0.15, 0.1), rng.uniform(0.45, 0.65)
    return [
        (box(at, mast, -0.2, 0.035, 0.72), 2),
        (convex(at, (mast + 0.08, -0.85), (0.75, 0.25), (mast + 0.08, 0.25)), 0),
        (convex(at, (mast - 0.08, -0.6), (mast - 0.08, 0.25), (mast - jib, 0.25)), 3),
        (convex(at, (-0.9, 0.4), (0.95, 0.4), (0.6, 0.85), (-0.6, 0.85)), 1),
    ]


def _mushroom(at: Grid, rng: np.random.Generator) -> list[Part]:
    stem, wide, high = rng.uniform(0.16, 0.26), rng.uniform(0.68, 0.85), rng.uniform(0.65, 0.9)
    cap = np.maximum(ellipse(at, 0.0, 0.1, wide, high), at.y - np.float32(0.12))
    return [
        (union(box(at, 0.0, 0.45, stem, 0.48, 0.12), ellipse(at, 0.0, 0.82, stem * 1.5, 0.15)), 3),
        (ellipse(at, 0.0, 0.12, wide * 0.8, 0.11), 2),
        (cap, 0),
        (
            np.maximum(
                union(disc(at, -0.3, -0.2, 0.12), disc(at, 0.12, -0.4, 0.13), disc(at, 0.4, -0.08, 0.1)), cap
            ),
            1,
        ),
    ]


def _flower(at: Grid, rng: np.random.Generator) -> list[Part]:
    count, turn, length = int(rng.integers(5, 9)), rng.uniform(0, np.pi), rng.uniform(0.2, 0.26)
    angles = turn + np.arange(count) * 2 * np.pi / count
    petals = union(
        *(
            ellipse(
                at,
                0.34 * np.cos(a),
                -0.35 + 0.34 * np.sin(a),
                length,
                1.25 * 0.34 * np.sin(np.pi / count) + 0.02,
                a,
            )
            for a in angles
        )
    )
    return [
        (line(at, 0.0, -0.2, 0.0, 0.95, 0.045), 1),
        (union(ellipse(at, 0.24, 0.55, 0.24, 0.1, -0.6), ellipse(at, -0.24, 0.7, 0.24, 0.1, 0.6)), 1),
        (petals, 0),
        (disc(at, 0.0, -0.35, 0.19), 2),
    ]


def _mug(at: Grid, rng: np.random.Generator) -> list[Part]:
    wide, high, grip = rng.uniform(0.45, 0.58), rng.uniform(0.55, 0.75), rng.uniform(0.26, 0.36)
    return [
        (ring(at, wide, 0.05, grip, 0.085), 1),
        (union(box(at, -0.1, 0.05, wide, high, 0.12), ellipse(at, -0.1, 0.05 - high, wide, 0.16)), 0),
        (ellipse(at, -0.1, 0.05 - high, wide * 0.86, 0.11), 2),
    ]


def _butterfly(at: Grid, rng: np.random.Generator) -> list[Part]:
    # Coordinates are folded along the middle, so that both sides are drawn at once.
    half = Grid(np.abs(at.x), at.y, at.pixel)
    upper, lower = rng.uniform(0.46, 0.58), rng.uniform(0.32, 0.42)
    return [
        (line(half, 0.02, -0.4, 0.24, -0.8, 0.025), 2),
        (ellipse(half, 0.42, 0.42, lower, 0.27, 0.7), 1),
        (ellipse(half, 0.5, -0.28, upper, 0.36, -0.6), 0),
        (disc(half, 0.58, -0.35, 0.13), 3),
        (disc(half, 0.45, 0.45, 0.09), 3),
        (ellipse(at, 0.0, 0.02, 0.085, 0.55), 2),
    ]


def _rocket(at: Grid, rng: np.random.Generator) -> list[Part]:
    wide, fin = rng.uniform(0.24, 0.34), rng.uniform(0.3, 0.42)
    half = Grid(np.abs(at.x), at.y, at.pixel)
    body = np.maximum(ellipse(at, 0.0, 0.0, wide, 0.95), at.y - np.float32(0.6))
    return [
        (convex(at, (-wide * 0.6, 0.6), (wide * 0.6, 0.6), (0.0, 1.0)), 3),
        (convex(half, (wide * 0.6, 0.1), (wide + fin, 0.55), (wide + fin, 0.8), (wide * 0.6, 0.58)), 1),
        (body, 0),
        (np.maximum(body, at.y + np.float32(0.5)), 1),
        (disc(at, 0.0, -0.15, 0.17), 2),
        (disc(at, 0.0, -0.15, 0.11), 3),
    ]


def _umbrella(at: Grid, rng: np.random.Generator) -> list[Part]:
    ribs, high = int(rng.integers(3, 6)), rng.uniform(0.75, 0.95)
    notch = 0.88 / ribs
    bites = union(*(disc(at, -0.88 + notch * (2 * rib + 1), 0.08, notch) for rib in range(ribs)))
    dome = np.maximum(ellipse(at, 0.0, 0.05, 0.88, high), at.y - np.float32(0.05))
    hook = np.maximum(ring(at, 0.15, 0.75, 0.15, 0.045), np.float32(0.75) - at.y)
    return [(union(line(at, 0.0, -0.95, 0.0, 0.75, 0.04), hook), 2), (without(dome, bites), 0)]


OBJECTS: tuple[Callable[[Grid, np.random.Generator], list[Part]], ...] = (
    _fish,
    _house,
    _tree,
    _boat,
    _mushroom,
    _flower,
    _mug,
    _butterfly,
    _rocket,
    _umbrella,
)
