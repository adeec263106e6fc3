"""The built-in data: small rendered scenes with a label and a segmentation mask.

One main object stands before a varied background among distractors; its kind is the label. Colours, textures, light, size and place
are drawn alike for every kind, so that only shape and structure tell the kinds apart.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from beit.checks import file_name, not_negative, positive
from pipelines import drawing, seeds, storage
from pipelines.drawing import Field, Grid, box, convex, disc, ellipse, line, ring, star, union, without

if TYPE_CHECKING:
    from pipelines.sources import Manifest

CLASS_NAMES = ("fish", "house", "tree", "boat", "mushroom", "flower", "mug", "butterfly", "rocket", "umbrella")
"""Names of the labels 0 to 9. In masks 0 is the background, distractors included, and label + 1 the main object."""

# Scenes are drawn at twice the size and averaged: edges and textures come out smooth.
_OVERSAMPLING = 2

Part = tuple[Field, int]
"""The distance to a part of an object, and which of the object's four materials it wears."""


@dataclass(frozen=True)
class Scene:
    """A rendered scene of S x S pixels."""

    image: NDArray[np.uint8]
    """uint8 [S, S, 3], RGB."""

    label: int
    """Kind of the main object: index into `CLASS_NAMES`."""

    mask: NDArray[np.uint8]
    """uint8 [S, S]: label + 1 where the main object shows, 0 elsewhere. No pixel is to be ignored."""


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
    wide, roof, door = rng.uniform(0.55, 0.75), rng.uniform(0.45, 0.7), rng.choice([-1, 1]) * rng.uniform(0.15, 0.3)
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
        return [trunk, *((convex(at, (-half, base), (0.0, base - high), (half, base)), 0) for base, half, high in layers)]
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
        (np.maximum(union(disc(at, -0.3, -0.2, 0.12), disc(at, 0.12, -0.4, 0.13), disc(at, 0.4, -0.08, 0.1)), cap), 1),
    ]


def _flower(at: Grid, rng: np.random.Generator) -> list[Part]:
    count, turn, length = int(rng.integers(5, 9)), rng.uniform(0, np.pi), rng.uniform(0.2, 0.26)
    angles = turn + np.arange(count) * 2 * np.pi / count
    petals = union(
        *(ellipse(at, 0.34 * np.cos(a), -0.35 + 0.34 * np.sin(a), length, 1.25 * 0.34 * np.sin(np.pi / count) + 0.02, a) for a in angles)
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
    # Folded along the middle: both sides are one drawing.
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


_OBJECTS: tuple[Callable[[Grid, np.random.Generator], list[Part]], ...] = (
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


def render_scene(rng: np.random.Generator, *, image_size: int = 64, label: int | None = None) -> Scene:
    """Draw a scene.

    Args:
        rng: Where every choice comes from. The choices do not depend on the size: the same generator gives the same scene.
        image_size: S, side of the image in pixels.
        label: Kind of the main object. None: drawn, all alike.
    """
    drawn = int(rng.integers(len(CLASS_NAMES)))
    label = drawn if label is None else label
    grid = Grid.square(image_size * _OVERSAMPLING)
    angle = rng.uniform(-2.6, -0.5)
    light = (float(np.cos(angle)), float(np.sin(angle)))

    picture, ground = _background(rng, grid)
    materials = _materials(rng, ground)
    for _ in range(int(rng.integers(1, 4))):
        _distractor(rng, grid, picture, ground, near=0.3)

    scale, stretch = rng.uniform(0.5, 0.82), rng.uniform(0.85, 1.15)
    free = 1.08 - scale
    place = (float(rng.uniform(-free, free)), float(rng.uniform(-free, free)))
    at = grid.moved(to=place, scale=scale, angle=rng.uniform(-0.35, 0.35), mirrored=bool(rng.integers(2)), stretch=stretch)
    parts = _OBJECTS[label](at, rng)
    outline = union(*(distance for distance, _ in parts))
    side, reach, dark = grid.x.shape[0], rng.uniform(0.03, 0.1), rng.uniform(0.25, 0.55)
    shadow = drawing.shifted(outline, round(-light[1] * reach * side / 2), round(-light[0] * reach * side / 2))
    drawing.paint(picture, drawing.coverage(shadow, 0.22) * np.float32(dark), np.zeros((3, 1, 1), np.float32))
    strength = np.float32(rng.uniform(0.25, 0.5))
    patterns = [drawing.mix(first, second, drawing.texture(rng, at, kind)) for first, second, kind in materials]
    for distance, material in parts:
        facing = drawing.toward(distance, light, at.pixel) * strength
        lit = patterns[material] * (1 + facing)
        drawing.paint(picture, drawing.coverage(distance, at.pixel * 1.5), lit)
    shown = drawing.coverage(outline, at.pixel)

    for _ in range(int(rng.integers(0, 3))):
        hidden, window = _distractor(rng, grid, picture, ground, near=0.85)
        shown[window] *= 1 - hidden

    glow = 1 + np.float32(rng.uniform(0.0, 0.2)) * (grid.x * np.float32(light[0]) + grid.y * np.float32(light[1]))
    picture *= glow
    levels = np.clip(_shrink(picture, _OVERSAMPLING) * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    mask = np.where(_shrink(shown, _OVERSAMPLING) >= 0.5, label + 1, 0).astype(np.uint8)
    return Scene(np.ascontiguousarray(levels.transpose(1, 2, 0)), label, mask)


def _background(rng: np.random.Generator, grid: Grid) -> tuple[drawing.Picture, float]:
    """Draw a picture to put things on, and its mean luminance."""
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
    sky = drawing.mix(first, drawing.blend(first, np.ones(3, np.float32), 0.5), np.clip((grid.y + 1) / np.float32(1.2 + level), 0, 1))
    bumps = np.float32(rng.uniform(0.06, 0.2)) * np.sin(grid.x * np.float32(rng.uniform(2, 5)) + np.float32(rng.uniform(0, 6)))
    depth = grid.y - np.float32(level) - (bumps if kind == "hills" else 0)
    # Seen in perspective: a floor's pattern shrinks toward the horizon.
    away = np.asarray(1 / np.maximum(depth + np.float32(0.35), np.float32(0.2)), np.float32)
    floor = Grid(grid.x * away, away * np.float32(1.5), grid.pixel * 3)
    pattern = drawing.texture(rng, floor, str(rng.choice(["plain", "checks", "stripes", "noise"])))
    drawing.paint(sky, drawing.coverage(-depth, grid.pixel), drawing.mix(second, second * np.float32(0.8), pattern))
    return sky, drawing.luminance(drawing.blend(first, second, 0.5))


def _materials(rng: np.random.Generator, ground: float) -> list[tuple[drawing.Colour, drawing.Colour, str]]:
    """Two colours and a texture for each of an object's four materials: body, second, dark or light detail, opposite detail."""
    main = _contrasting(rng, ground, 0.2)
    body = (main, np.clip(main * np.float32(rng.choice([0.55, 1.5])) + np.float32(0.04), 0, 1), str(rng.choice(drawing.TEXTURES)))
    other = _contrasting(rng, ground, 0.15)
    second = (other, other * np.float32(0.7), str(rng.choice(["plain", "plain", "stripes", "gradient"])))
    dark = drawing.draw_colour(rng, saturation=(0.2, 0.6), value=(0.1, 0.3))
    bright = drawing.draw_colour(rng, saturation=(0.0, 0.35), value=(0.85, 1.0))
    return [body, second, (dark, dark, "plain"), (bright, bright, "plain")]


def _contrasting(rng: np.random.Generator, ground: float, distance: float) -> drawing.Colour:
    """A colour that stands out: the first of a few draws that is `distance` brighter or darker than the ground."""
    draws = [drawing.draw_colour(rng, saturation=(0.35, 0.95), value=(0.3, 1.0)) for _ in range(6)]
    return next((colour for colour in draws if abs(drawing.luminance(colour) - ground) > distance), draws[-1])


def _distractor(
    rng: np.random.Generator, grid: Grid, picture: drawing.Picture, ground: float, *, near: float
) -> tuple[Field, tuple[slice, slice]]:
    """Paint a small plain shape, farther than `near` from the middle; return what it covers and in which window."""
    angle, away, size = rng.uniform(0, 2 * np.pi), rng.uniform(near, 1.2), rng.uniform(0.1, 0.22)
    centre = (float(np.clip(away * np.cos(angle), -0.95, 0.95)), float(np.clip(away * np.sin(angle), -0.95, 0.95)))
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
    shaded = drawing.mix(colour, colour * np.float32(0.7), np.clip(at.y * np.float32(0.5) + np.float32(0.5), 0, 1))
    drawing.paint(picture[:, *window], covered, shaded)
    return covered, window


def _shrink(picture: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Average blocks of factor x factor pixels: [..., H, W] -> [..., H / factor, W / factor]."""
    # Adding slices is several times as fast as a mean over two short axes.
    total = sum(picture[..., row::factor, column::factor] for row in range(factor) for column in range(factor))
    return np.asarray(total, np.float32) * np.float32(1 / factor**2)


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """How many scenes to render, and where to."""

    out: str
    """Folder or bucket URI for the shards."""

    images: int = 10_000
    """How many to render."""

    image_size: int = 64
    """Side of an image, in pixels."""

    seed: int = 0
    """Image i depends on (seed, i) only."""

    first: int = 0
    """Number of the first image: a held-out split of the same seed begins behind the training images."""

    split: str = "train"
    """Begins the shards' names."""

    def __post_init__(self) -> None:
        positive(self, "--", "images", "image_size")
        not_negative(self, "--", "seed", "first")
        file_name(self, "--", "split")


def are_scenes(manifest: Manifest) -> bool:
    """Whether images are the built-in scenes, by the names of their classes."""
    return manifest.class_names == CLASS_NAMES


def write_scenes(
    out: str | Path,
    *,
    images: int,
    seed: int,
    image_size: int = 64,
    first: int = 0,
    split: str = "train",
    rows_per_group: int = 100,
    images_per_shard: int = 10_000,
) -> list[str]:
    """Render scenes into Parquet shards in the layout of the Hugging Face hub.

    Columns: `image` (a JPEG) and `annotation` (a PNG of class ids, see `CLASS_NAMES`), both struct<bytes, path>, and `label`.
    The schema's metadata holds the JSON lists `class_names` (of labels) and `annotation_names` (of class ids).
    The same arguments give the same bytes; image i depends on (seed, i, image_size) only.

    Args:
        out: Folder, made if missing; local, s3:// or gs://.
        images: How many to render.
        seed: Of the scenes.
        image_size: Side of an image, in pixels.
        first: Number of the first image: further images of the same seed are new ones, as a held-out split needs.
        split: Begins the shards' names.
        rows_per_group: Images of a row group.
        images_per_shard: Most images of a file.

    Returns:
        The shards' paths, in order.
    """
    names = {"class_names": json.dumps(CLASS_NAMES), "annotation_names": json.dumps(("background", *CLASS_NAMES))}
    encoded = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": encoded, "label": pa.int64(), "annotation": encoded}, metadata=names)
    shards = max(1, -(-images // images_per_shard))
    written = []
    for shard in range(shards):
        path = storage.join(out, f"{split}-{shard:05d}-of-{shards:05d}.parquet")
        numbers = range(first + shard * images_per_shard, first + min(images, (shard + 1) * images_per_shard))
        with storage.open_output(path) as file, pq.ParquetWriter(file, schema, compression="none") as writer:
            for start in range(0, len(numbers), rows_per_group):
                rows = [_row(seed, number, image_size) for number in numbers[start : start + rows_per_group]]
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=rows_per_group)
        written.append(path)
    return written


def _row(seed: int, number: int, image_size: int) -> dict[str, Any]:
    """One image as a row of the shards."""
    scene = render_scene(seeds.generator(seed, seeds.SCENE, 0, 0, number), image_size=image_size)
    picture = simplejpeg.encode_jpeg(scene.image, quality=95, colorspace="RGB", colorsubsampling="444")
    mask = io.BytesIO()
    Image.fromarray(scene.mask).save(mask, "PNG")
    name = f"{CLASS_NAMES[scene.label]}-{number:07d}"
    return {
        "image": {"bytes": picture, "path": f"{name}.jpg"},
        "label": scene.label,
        "annotation": {"bytes": mask.getvalue(), "path": f"{name}.png"},
    }
