"""Packing: every image once, shuffled, the same bytes again, and only what is missing."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.errors import UserError
from pipelines import storage
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source
from pipelines.sources.base import ChosenColumns
from pipelines.tools import pack as packing
from pipelines.tools.pack import (
    PLAN_FILE,
    PackConfig,
    Packing,
    Shards,
    gather,
    pack,
    plan_shards,
    write_shards,
)

CLASSES = [f"n{i:04d}" for i in range(20)]
IMAGES = {
    f"{name}/{name}_{i}.JPEG": f"image {i} of {name}".encode() * 400 for name in CLASSES for i in range(30)
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """A tar of one tar for each class, as ImageNet comes, sorted by class."""
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for name in CLASSES:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path, content in IMAGES.items():
                    if path.startswith(name):
                        add(inner, Path(path).name, content)
            add(outer, f"{name}.tar", buffer.getvalue())
    return tmp_path / "train.tar"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("window_rows", [None, 700])
def test_a_plan_gives_every_image_one_place(window_rows):
    rows = np.random.default_rng(0).integers(1, 250, 40).astype(np.int32)
    total = int(rows.sum())
    plan, again = (plan_shards(rows, shard_rows=300, window_rows=window_rows, seed=7) for _ in range(2))
    assert np.array_equal(plan.order, again.order)
    assert sorted(plan.order.tolist()) == list(range(total))
    assert (plan.bounds[0], plan.bounds[-1]) == (0, total)
    assert plan.tasks[-1] == len(plan.bounds) - 1
    sizes = np.diff(plan.bounds)
    assert sizes.min() > 150
    assert sizes.max() < 600
    # Neighbours in the source are no neighbours in the shards.
    assert (np.abs(np.diff(plan.order)) == 1).mean() < 0.02


def test_a_window_reads_each_row_group_in_one_task_only():
    rows = np.full(60, 100, np.int32)
    plan = plan_shards(rows, shard_rows=200, window_rows=1000, seed=0)
    readers: dict[int, set[int]] = {}
    for task in range(len(plan.tasks) - 1):
        images = plan.order[plan.bounds[plan.tasks[task]] : plan.bounds[plan.tasks[task + 1]]]
        for unit in np.unique(images // 100):
            readers.setdefault(int(unit), set()).add(task)
    assert sorted(readers) == list(range(60))
    assert all(len(tasks) == 1 for tasks in readers.values())


def test_gathering_follows_the_numbers(ilsvrc: Path):
    manifest = open_source(str(ilsvrc)).manifest
    images = np.random.default_rng(0).permutation(manifest.total)[:100]
    found = gather(manifest, images, ("image", "label", "image.path"))
    stored = list(IMAGES.items())
    assert found["image"].tolist() == [stored[i][1] for i in images]
    assert found["image.path"].tolist() == [Path(stored[i][0]).name for i in images]
    assert found["label"].tolist() == (images // 30).tolist()


@pytest.fixture
def packed(ilsvrc: Path, tmp_path: Path, ray_cluster) -> PackConfig:
    """The archive packed into a handful of shards by Ray."""
    config = PackConfig(source=str(ilsvrc), out=str(tmp_path / "out"), shard_mib=1, rows_per_group=25, seed=3)
    result = pack(config)
    assert (result.images, result.shards, result.written) == (600, 5, 5)
    return config


def test_packing_an_archive_of_archives_twice(packed: PackConfig, tmp_path: Path):
    paths = sorted(Path(packed.out).glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert sorted((CLASSES[row["label"]], row["image"]["bytes"]) for row in rows) == sorted(
        (k[:5], v) for k, v in IMAGES.items()
    )
    assert json.loads(pq.read_schema(paths[0]).metadata[b"class_names"]) == CLASSES
    group = pq.ParquetFile(paths[0]).read_row_group(0)
    assert group.num_rows == 25
    expected = 20 * (1 - (1 - 1 / 20) ** 25)
    assert len(set(group["label"].to_pylist())) > expected / 2, (
        "a row group of a class-sorted source must mix the classes"
    )

    # Taken away in the middle of the job, a shard comes back as it was; the others are not touched.
    before = {path.name: path.read_bytes() for path in paths}
    times = {path.name: path.stat().st_mtime_ns for path in paths[1:]}
    paths[0].unlink()
    assert pack(packed).written == 1
    assert {path.name: path.read_bytes() for path in paths} == before
    assert {path.name: path.stat().st_mtime_ns for path in paths[1:]} == times

    with pytest.raises(UserError, match="seed is 3 there and 4 here"):
        pack(PackConfig(**{**vars(packed), "seed": 4}))

    # What was packed can be packed again, from Parquet, in windows.
    again = PackConfig(source=packed.out, out=str(tmp_path / "again"), rows_per_group=50)
    assert pack(again).images == 600
    second = [
        row for path in sorted(Path(again.out).glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    key = str
    assert sorted(second, key=key) == sorted(rows, key=key)
    assert second != rows


def test_the_labels_keep_their_names_whatever_their_column_is_called_and_what_is_left_out_is_said(
    tmp_path: Path, ray_cluster
):
    images = pa.array([{"bytes": b"%d" % i, "path": f"{i}.png"} for i in range(4)])
    table = pa.table(
        {
            "image": images,
            "coarse_label": [1, 0, 1, 0],
            "fine_label": [0, 1, 2, 1],
            "note": ["a", "b", "c", "d"],
        }
    )
    features = {"coarse_label": {"names": ["mammal", "fish"]}, "fine_label": {"names": ["cat", "dog", "eel"]}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "a.parquet",
    )
    lines: list[str] = []
    pack(PackConfig(source=str(tmp_path / "a.parquet"), out=str(tmp_path / "out")), say=lines.append)
    assert "columns: the column fine_label becomes label; left out: coarse_label, note" in lines
    [shard] = (tmp_path / "out").glob("*.parquet")
    packed = pq.read_table(shard)
    assert packed.column_names == ["image", "label"]
    assert {row["image"]["bytes"]: row["label"] for row in packed.to_pylist()} == {
        b"0": 0,
        b"1": 1,
        b"2": 2,
        b"3": 1,
    }
    assert json.loads(packed.schema.metadata[b"class_names"]) == ["cat", "dog", "eel"]


def test_a_missing_label_is_packed_as_missing_whatever_the_first_row_group_has(tmp_path: Path):
    for name, labels in {
        "bool": [True, True, True, None],
        "whole": [1, 2, None, 0],
        "text": ["a", "b", "c", None],
    }.items():
        images = pa.array([{"bytes": b"%d" % i, "path": f"{i}.png"} for i in range(4)])
        pq.write_table(
            pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet", row_group_size=2
        )
        manifest = open_source(str(tmp_path / f"{name}.parquet")).manifest
        plan = plan_shards(manifest.rows, shard_rows=4, window_rows=4, seed=0)
        write_shards(manifest, plan, {0: str(tmp_path / "out.parquet")}, rows_per_group=3)
        rows = sorted(
            pq.read_table(tmp_path / "out.parquet").to_pylist(), key=lambda row: row["image"]["bytes"]
        )
        assert [row["label"] for row in rows] == labels


def packed_by_hand(source, place, *, rows_per_group=4):
    """Write all images of a source into one shard; returns its rows by image, and how many were left out."""
    manifest = source.manifest
    plan = plan_shards(manifest.rows, shard_rows=manifest.total, window_rows=manifest.total, seed=0)
    empty = write_shards(manifest, plan, {0: str(place)}, rows_per_group=rows_per_group)
    return {row["image"]["bytes"]: row for row in pq.read_table(place).to_pylist()}, empty


def test_images_without_bytes_are_left_out_and_counted(tmp_path: Path):
    images = pa.array([{"bytes": None if i % 3 == 0 else b"%d" % i, "path": f"{i}.png"} for i in range(30)])
    pq.write_table(pa.table({"image": images, "label": range(30)}), tmp_path / "a.parquet")
    rows, empty = packed_by_hand(open_source(str(tmp_path / "a.parquet")), tmp_path / "out.parquet")
    assert empty == 10
    assert {image: row["label"] for image, row in rows.items()} == {b"%d" % i: i for i in range(30) if i % 3}
    groups = pq.read_metadata(tmp_path / "out.parquet")
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [4] * 5
    (tmp_path / "empty").mkdir()
    for i in range(3):
        (tmp_path / "empty" / f"{i}.jpg").write_bytes(b"")
    rows, empty = packed_by_hand(open_source(str(tmp_path / "empty")), tmp_path / "none.parquet")
    assert (rows, empty) == ({}, 3), "a shard of nothing is a shard"


def test_a_row_group_is_never_larger_than_a_task_can_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(packing, "GROUP_BYTES", 1000)
    sizes = [300, 300, 300, 300, 5000, 10, 10]
    images = pa.array([bytes([i]) * size for i, size in enumerate(sizes)])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    rows, _ = packed_by_hand(
        open_source(str(tmp_path / "a.parquet")), tmp_path / "out.parquet", rows_per_group=5
    )
    assert sorted(map(len, rows)) == sorted(sizes)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    held = [
        [len(row["image"]["bytes"]) for row in file.read_row_group(i).to_pylist()]
        for i in range(file.num_row_groups)
    ]
    assert all(sum(group) <= 1000 or len(group) == 1 for group in held)
    assert all(len(group) <= 5 for group in held)


def test_masks_and_labels_are_kept_whatever_their_columns_are_called(tmp_path: Path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images, masks = (
        pa.array([{"bytes": b"%s %d" % (name, i), "path": None} for i in range(9)], kind)
        for name in (b"image", b"mask")
    )
    table = pa.table(
        {"jpg": images, "label": masks, "cls": range(9), "species": ["ab"[i % 2] for i in range(9)]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    for columns, label in (
        (ChosenColumns(), lambda i: i),
        (ChosenColumns(label="species"), lambda i: "ab"[i % 2]),
    ):
        source = open_source(str(tmp_path / "a.parquet"), columns=columns)
        rows, _ = packed_by_hand(source, tmp_path / "out.parquet")
        assert {image: (row["label"], row["annotation"]["bytes"]) for image, row in rows.items()} == {
            b"image %d" % i: (label(i), b"mask %d" % i) for i in range(9)
        }


def test_labels_that_some_shards_lack_are_packed_as_missing(tmp_path: Path):
    for name, labels in (("a", pa.nulls(8)), ("b", ["x"] * 8)):
        images = pa.array([b"%s%d" % (name.encode(), i) for i in range(8)])
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet")
    rows, _ = packed_by_hand(open_source(str(tmp_path / "*.parquet")), tmp_path / "out" / "o.parquet")
    assert {image: row["label"] for image, row in rows.items()} == {
        **{b"a%d" % i: None for i in range(8)},
        **{b"b%d" % i: "x" for i in range(8)},
    }


def test_several_shards_of_a_task_are_written_like_one_by_one(ilsvrc: Path, tmp_path: Path):
    manifest = open_source(str(ilsvrc)).manifest
    plan = plan_shards(manifest.rows, shard_rows=150, window_rows=None, seed=0)
    write_shards(manifest, plan, {i: str(tmp_path / f"together-{i}") for i in range(4)}, rows_per_group=64)
    for i in range(4):
        write_shards(manifest, plan, {i: str(tmp_path / f"alone-{i}")}, rows_per_group=64)
        assert (tmp_path / f"together-{i}").read_bytes() == (tmp_path / f"alone-{i}").read_bytes()


def test_of_a_source_with_several_splits_the_one_asked_for_is_packed(tmp_path: Path, ray_cluster):
    for split, first in (("train", 0), ("val", 100)):
        write_scenes(tmp_path / "hub", images=20, seed=0, image_size=32, first=first, split=split)
    said: list[str] = []
    held = {}
    for split in ("train", "val"):
        result = pack(
            PackConfig(source=str(tmp_path / "hub"), out=str(tmp_path / split), split=split), say=said.append
        )
        held[split] = {
            row["image"]["bytes"]
            for path in Path(result.out).glob(f"{split}-*")
            for row in pq.read_table(path).to_pylist()
        }
        assert said[-1].startswith(f"warning: only the 1 {split} files are read")
    assert {split: len(images) for split, images in held.items()} == {"train": 20, "val": 20}
    assert not held["train"] & held["val"]


def test_a_folder_laid_out_by_hand_goes_on(tmp_path: Path):
    """The layout on disk must not change: an earlier version may have been stopped in the middle of
    packing.
    """
    (tmp_path / "pack.json").write_text(
        """{
 "source": "digest",
 "images": 600,
 "shards": 3,
 "split": "train",
 "seed": 3,
 "shard_mib": 1,
 "rows_per_group": 25,
 "window_mib": 1024
}
"""
    )
    before = (tmp_path / "pack.json").read_bytes()
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"")
    packing = Packing(
        source="digest",
        images=600,
        shards=3,
        split="train",
        seed=3,
        shard_mib=1,
        rows_per_group=25,
        window_mib=1024,
    )
    shards = Shards(str(tmp_path), packing)
    shards.begin()
    assert shards.missing() == [0, 2]
    shards.write_description(PLAN_FILE)
    assert (tmp_path / "pack.json").read_bytes() == before


def test_a_folder_with_other_things_is_left_alone(ilsvrc: Path, tmp_path: Path):
    storage.write_text(tmp_path / "out" / "thesis.tex", "precious")
    with pytest.raises(UserError, match=r"is not empty and holds no pack.json .*thesis.tex"):
        pack(PackConfig(source=str(ilsvrc), out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="lies in source"):
        pack(PackConfig(source=str(tmp_path), out=str(tmp_path / "inside")))
    assert not (tmp_path / "out" / PLAN_FILE).exists()
