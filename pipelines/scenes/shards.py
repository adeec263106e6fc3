"""Write the built-in scenes as Parquet shards."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from beit.checks import CommandConfig, FileName, NotNegativeInt, PositiveInt
from pipelines import seeds, storage
from pipelines.scenes.objects import CLASS_NAMES
from pipelines.scenes.render import render_scene
from pipelines.schemes import StoragePath
from pipelines.sources import Manifest


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(CommandConfig):
    """Render the built-in scenes into Parquet shards."""

    out: StoragePath
    """Folder or bucket URI for the shards."""

    images: PositiveInt = 10_000
    """Number of scenes to render."""

    image_size: PositiveInt = 64
    """Side of an image, in pixels."""

    seed: NotNegativeInt = 0
    """Seed of the scenes: image i depends only on (seed, i)."""

    first: NotNegativeInt = 0
    """Number of the first image. A held-out split with the same seed begins after the last training image."""

    split: FileName = "train"
    """First part of the shards' names."""


def are_scenes(manifest: Manifest) -> bool:
    """Whether images are the built-in scenes, judging by the names of their classes."""
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

    Columns: `image` (a JPEG) and `annotation` (a PNG of class ids, see `CLASS_NAMES`), both struct<bytes,
    path>, and `label`. The schema's metadata holds the JSON lists `class_names` (of labels) and
    `annotation_names` (of class ids). The same arguments give the same bytes; image i depends on (seed, i,
    image_size) only.

    Args:
        out: Folder, local or on s3:// or gs://; it is created if it does not exist.
        images: Number of scenes to render.
        seed: Seed of the scenes.
        image_size: Side of an image, in pixels.
        first: Number of the first image. Images with other numbers differ, so a held-out split can use the
            same seed.
        split: First part of the shards' names.
        rows_per_group: Number of images in a row group.
        images_per_shard: Most images in a shard.

    Returns:
        The shards' paths, in order.
    """
    names = {
        "class_names": json.dumps(CLASS_NAMES),
        "annotation_names": json.dumps(("background", *CLASS_NAMES)),
    }
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
    """Render one image as a row of the shards."""
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
