"""Splits of a data set in folders of their own: one is chosen, and none of them is ever taken for a class."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.errors import UserError
from pipelines.sources import open_source
from pipelines.tools.check import CheckConfig, check


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


CLASSES = ("cat", "dog", "owl")


def write_folders(root: Path, **images: int) -> None:
    """ROOT/SPLIT/CLASS/NUMBER.jpg; the keywords are splits, with their images a class."""
    for split, count in images.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(b"no image")


def write_hub(root: Path, **images: int) -> None:
    """ROOT/default/SPLIT/0000.parquet, as the hub converts; labels of the test split are hidden (-1)."""
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, count in images.items():
        (root / "default" / split).mkdir(parents=True)
        labels = [-1 if split == "test" else i % 3 for i in range(count)]
        table = pa.table({"image": pa.array([b"no image"] * count, pa.binary()), "label": labels})
        pq.write_table(table.replace_schema_metadata(about), root / "default" / split / "0000.parquet")


def test_the_folder_of_the_split_that_is_asked_for_is_read(tmp_path: Path):
    write_folders(tmp_path, train=3, val=2)
    for split, count in (("train", 9), ("val", 6)):
        source = open_source(str(tmp_path), split=split)
        assert source.manifest.total == count
        assert source.manifest.class_names == CLASSES
        assert source.manifest.digest != open_source(str(tmp_path / split)).manifest.digest
    assert source.warnings == (
        "only the 6 val files are read; there are other splits beside them: train (9)",
    )


@pytest.mark.parametrize(
    ("folders", "split", "count"),
    [
        ({"training": 3, "validation": 1}, "train", 9),
        ({"training": 3, "validation": 1}, "val", 3),
        ({"train2017": 3, "val2017": 2, "unlabeled2017": 1}, "train", 9),
        ({"Train": 3, "Test": 2}, "train", 9),
    ],
)
def test_splits_are_known_by_the_names_that_data_sets_give_them(tmp_path: Path, folders, split, count):
    write_folders(tmp_path, **folders)
    manifest = open_source(str(tmp_path), split=split).manifest
    assert (manifest.total, manifest.class_names) == (count, CLASSES)


def test_without_a_split_all_are_read_with_the_classes_below_them(tmp_path: Path):
    write_folders(tmp_path, train=3, val=2)
    source = open_source(str(tmp_path))
    assert (source.manifest.total, source.manifest.class_names) == (15, CLASSES)
    assert source.warnings == (
        "all splits are read: train (9), val (6); to read one of them, give its folder",
    )


def test_a_class_of_trains_is_a_class(tmp_path: Path):
    for name in ("bus", "train", "car"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    source = open_source(str(tmp_path), split="train")
    assert (source.manifest.class_names, source.warnings) == (("bus", "car", "train"), ())
    write_folders(tmp_path / "both", train=1, val=1)
    for split in ("train", "val"):
        (tmp_path / "both" / split / "train").mkdir()
        (tmp_path / "both" / split / "train" / "1.jpg").write_bytes(b"x")
    assert open_source(str(tmp_path / "both"), split="val").manifest.class_names == (*CLASSES, "train")


def test_folders_of_shards_are_splits_too(tmp_path: Path):
    write_hub(tmp_path, train=90, test=60)
    assert open_source(str(tmp_path), split="train").manifest.total == 90
    assert open_source(str(tmp_path), split="test").manifest.total == 60
    assert open_source(str(tmp_path)).manifest.total == 150


def test_a_split_that_is_not_there_is_asked_for_by_name(tmp_path: Path):
    write_hub(tmp_path, train=9, test=6)
    with pytest.raises(UserError) as refused:
        open_source(str(tmp_path), split="val", option="data.val")
    assert refused.value.cause == (
        f"data.val={tmp_path} holds splits, but none that is called val: test (1), train (1)"
    )
    assert refused.value.remedy == f"name the one that is meant, for example {tmp_path}/default/test"


def test_the_check_says_how_many_images_have_no_label(tmp_path: Path):
    write_hub(tmp_path, train=9, test=6)
    result = check(CheckConfig(source=str(tmp_path / "default/test"), sheet=None))
    assert result.classes == {"cat": 0, "dog": 0, "owl": 0, "no label": 6}
    assert "classes 3, with no image that was checked; 6 without a label" in result.lines()
    result = check(CheckConfig(source=str(tmp_path), sheet=None))
    assert "classes 3, with 3 to 3 of the images checked; 6 without a label" in result.lines()
