"""Lists that choose the images of a folder, and label them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.checks import check
from beit.errors import UserError
from pipelines.config.data import DataConfig, SupervisedDataConfig
from pipelines.config.supervised import FinetuneConfig, SegmentDataConfig
from pipelines.datasets import open_labelled
from pipelines.sources import open_source
from pipelines.sources.labels import label_source
from pipelines.sources.pairs import with_annotations

NAMES = [f"{folder}/{i:03d}.jpg" for folder in ("cat", "dog") for i in range(100)]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


def chosen(folder, text, ending="txt"):
    file = folder.parent / f"list.{ending}"
    file.write_bytes(text.encode())
    return open_source(str(folder), chosen=str(file))


def images(source, columns=("image",)):
    found = [
        source.unit(unit).read(np.arange(rows), columns) for unit, rows in enumerate(source.manifest.rows)
    ]
    return {name: np.concatenate([part[name] for part in found]).tolist() for name in columns}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_list_of_paths_chooses_the_images_which_keep_their_classes(newline, folder):
    names = NAMES[50:150]
    source = chosen(folder, newline.join([*names[:2], "", *(f"./{name}" for name in names[2:])]))
    assert sorted(images(source)["image"]) == [name.encode() for name in names]
    assert source.manifest.class_names == ("cat", "dog")
    absolute = chosen(folder, "\n".join(f"{folder}/{name}" for name in names))
    assert absolute.manifest.digest == source.manifest.digest
    assert chosen(folder, "\n".join(names[1:])).manifest.digest != source.manifest.digest


def test_a_table_chooses_and_labels_by_numbers_or_names(folder):
    names = NAMES[50:150]
    numbers = chosen(
        folder, "path,label\n" + "\n".join(f"{name},{i % 7}" for i, name in enumerate(names)), "csv"
    )
    found = images(numbers, ("image.path", "label"))
    assert dict(zip(found["image.path"], found["label"], strict=True)) == {
        name: i % 7 for i, name in enumerate(names)
    }
    assert numbers.manifest.class_names is None
    words = chosen(
        folder,
        "\ufeffsplit,label,path\n"
        + "\n".join(f"a,{name[4:6]}-{'xy'[i % 2]},{name}" for i, name in enumerate(names)),
        "CSV",
    )
    found = images(words, ("image.path", "label"))
    classes = words.manifest.class_names
    assert classes == tuple(sorted({f"{name[4:6]}-{'xy'[i % 2]}" for i, name in enumerate(names)}))
    assert [classes[label] for label in found["label"]] == [
        f"{name[4:6]}-{'xy'[names.index(name) % 2]}" for name in found["image.path"]
    ]
    assert words.manifest.digest != numbers.manifest.digest


def test_other_labels_of_the_same_images_are_other_data(folder):
    first, other = (chosen(folder, f"path,label\ncat/000.jpg,{label}\n", "csv") for label in (0, 1))
    assert first.manifest.digest != other.manifest.digest
    with pytest.raises(UserError, match="1 of 2 labels are none of 0 to 0"):
        label_source(chosen(folder, "path,label\ncat/000.jpg,0\ncat/001.jpg,\n", "csv"))


@pytest.mark.parametrize(
    ("text", "ending", "message"),
    [
        ("cat/000.jpg\n000.jpg", "txt", r"1 of 2 paths are no files of .*photos, the first is 000\.jpg"),
        ("cat/000.jpg\ncat/000.jpg", "txt", r"cat/000\.jpg is there 2 times"),
        ("\n", "txt", "names no images"),
        ("cat/000.jpg\n", "csv", r"has no column path; its first line is cat/000\.jpg"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(text, ending, message, folder):
    with pytest.raises(UserError, match=message) as told:
        chosen(folder, text, ending)
    assert told.value.cause.startswith("data.list=")
    if "000.jpg\n000" in text:
        assert "such as cat/000.jpg" in told.value.remedy


def test_lists_go_with_folders_of_images_and_columns_with_shards(folder, tmp_path):
    pq.write_table(pa.table({"image": pa.array([b"x"])}), tmp_path / "a.parquet")
    (tmp_path / "list.txt").write_text("a.parquet")
    with pytest.raises(
        UserError, match=r"--data.list .* goes with a folder of image files, .* holds parquet"
    ):
        open_source(str(tmp_path / "a.parquet"), chosen=str(tmp_path / "list.txt"))
    for data in (DataConfig(list="a.txt"), SupervisedDataConfig(train="a", val_list="b.txt")):
        with pytest.raises(UserError, match=r"list=[ab]\.txt is given without"):
            check(data, "data.")
    with pytest.raises(UserError, match="given without"):
        check(SegmentDataConfig(list="a.txt"), "data.")


def test_one_folder_with_a_list_for_training_and_one_for_validation(folder):
    for name, part in (("train", slice(0, 200, 2)), ("val", slice(1, 200, 2))):
        (folder.parent / f"{name}.txt").write_text("\n".join(NAMES[part]))
    data = SupervisedDataConfig(
        train=str(folder),
        val=str(folder),
        list=str(folder.parent / "train.txt"),
        val_list=str(folder.parent / "val.txt"),
    )
    opened = open_labelled(FinetuneConfig(data=data), image_size=8, classes=None, seed=0, say=print)
    assert (opened.train.total, opened.val.total, opened.class_names) == (100, 100, ("cat", "dog"))
    (folder.parent / "val.txt").write_text("nothing.jpg")
    with pytest.raises(UserError, match=r"^data.val_list=.*nothing.jpg"):
        open_labelled(FinetuneConfig(data=data), image_size=8, classes=None, seed=0, say=print)


def test_chosen_images_find_their_annotations(folder):
    for name in NAMES:
        file = folder.parent / "masks" / name.replace(".jpg", ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"mask of {name}".encode())
    source = with_annotations(
        chosen(folder, "\n".join(NAMES[::3])), str(folder.parent / "masks"), option="data.annotations"
    )
    found = images(source, ("image", "annotation"))
    assert [b"mask of " + image for image in found["image"]] == found["annotation"]
