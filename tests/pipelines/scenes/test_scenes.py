"""The built-in scenes: deterministic, balanced, and only the shape tells the class."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.scenes.objects import CLASS_NAMES
from pipelines.scenes.render import render_scene
from pipelines.scenes.shards import write_scenes


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(np.random.default_rng([1, i]), label=i % len(CLASS_NAMES)) for i in range(300)]


def test_a_scene_depends_on_its_generator_only():
    first, again, other = (render_scene(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("image_size", [48, 112])
def test_another_size_shows_the_same_scene(image_size):
    for seed in range(5):
        small, large = (
            render_scene(np.random.default_rng(seed), image_size=size) for size in (64, image_size)
        )
        assert large.image.shape == (image_size, image_size, 3)
        shrunk = np.asarray(Image.fromarray(large.image).resize((64, 64), Image.Resampling.BOX), np.float64)
        difference = np.abs(shrunk - small.image).mean()
        assert difference < 8, f"seed {seed}: {difference:.1f} grey levels apart on average"


def test_the_mask_covers_the_main_object_and_nothing_else(scenes):
    for scene in scenes:
        assert set(np.unique(scene.mask).tolist()) <= {0, scene.label + 1}
        share = (scene.mask > 0).mean()
        assert 0.02 < share < 0.6, f"a {CLASS_NAMES[scene.label]} covers {share:.0%} of its image"


def test_colours_do_not_give_the_class_away(scenes):
    # Each image's mean colour and its 4x4x4 colour histogram, each class's centre, and the share of nearest
    # centres that are right.
    labels = np.array([scene.label for scene in scenes])
    cells = np.stack([(scene.image // 64 * [16, 4, 1]).sum(-1).ravel() for scene in scenes])
    features = np.stack([np.bincount(row, minlength=64) / row.size for row in cells])
    known, new = np.arange(300) < 200, np.arange(300) >= 200
    centres = np.stack([features[known & (labels == label)].mean(0) for label in range(10)])
    nearest = ((features[new, None] - centres) ** 2).sum(-1).argmin(1)
    accuracy = (nearest == labels[new]).mean()
    assert accuracy < 0.3, f"colour histograms alone name {accuracy:.0%} of the classes; chance is 10%"


def test_shards_repeat_byte_for_byte_and_number_their_images(tmp_path: Path):
    whole = write_scenes(tmp_path / "a", images=25, seed=3, image_size=32, rows_per_group=10)
    again = write_scenes(tmp_path / "b", images=25, seed=3, image_size=32, rows_per_group=10)
    assert Path(whole[0]).read_bytes() == Path(again[0]).read_bytes()
    later = write_scenes(
        tmp_path / "c", images=10, seed=3, image_size=32, first=15, split="val", images_per_shard=5
    )
    assert [Path(path).name for path in later] == ["val-00000-of-00002.parquet", "val-00001-of-00002.parquet"]
    rows, tail = (
        pq.read_table(whole[0]).to_pylist(),
        [row for path in later for row in pq.read_table(path).to_pylist()],
    )
    assert tail == rows[15:]


def test_shards_hold_what_the_hub_layout_promises(tmp_path: Path):
    [path] = write_scenes(tmp_path, images=23, seed=0, image_size=32, rows_per_group=10)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 3]
    assert json.loads(file.schema_arrow.metadata[b"class_names"]) == list(CLASS_NAMES)
    for row in file.read().to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        mask = np.asarray(Image.open(io.BytesIO(row["annotation"]["bytes"])))
        assert image.size == (32, 32)
        assert image.mode == "RGB"
        assert set(np.unique(mask).tolist()) == {0, row["label"] + 1}
        assert row["image"]["path"].startswith(CLASS_NAMES[row["label"]])
