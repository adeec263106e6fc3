"""Annotations in a folder beside the images': each image gets its own, and what does not fit is named before
anything starts.
"""

import pickle

import numpy as np
import pytest

from beit.errors import UserError
from pipelines.sources import open_source
from pipelines.sources.pairs import with_annotations


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(root, names):
    """Files that hold their own names: pairing and reading need no pictures."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def pairs_in(manifest):
    """Image -> annotation, as the units deliver them in a mixed-up order, with where they say that
    it lies.
    """
    found = {}
    for index, count in enumerate(manifest.rows.tolist()):
        unit = pickle.loads(pickle.dumps(manifest.unit(index)))
        columns = unit.read(np.arange(count)[::-1], ("annotation", "image"))
        for row, image, annotation in zip(
            range(count)[::-1], columns["image"], columns["annotation"], strict=True
        ):
            assert unit.describe(row).endswith(image.decode())
            found[image.decode()] = annotation.decode()
    return found


def paired(tmp_path, images="images", annotations="annotations", say=print):
    source = open_source(str(tmp_path / images))
    return with_annotations(source, str(tmp_path / annotations), option="data.annotations", say=say)


def test_every_image_gets_the_annotation_of_its_path(tmp_path):
    names = [f"{'ab'[i % 2]}/{i:03}" for i in range(300)]
    write(tmp_path / "images", [f"{name}.jpg" for name in names])
    write(tmp_path / "annotations", [f"{name}.png" for name in names])
    write(tmp_path / "annotations", ["c/300.png", "readme.txt"])
    lines = []
    source = paired(tmp_path, say=lines.append)
    assert pairs_in(source.manifest) == {f"{name}.jpg": f"{name}.png" for name in names}
    assert lines == [
        "data.annotations: passed over: 1 entry: 1 x .txt",
        f"warning: 1 of 301 annotations in {tmp_path}/annotations belong to no image",
    ]
    assert source.summary.endswith("with annotations")
    before = source.manifest.digest
    (tmp_path / "annotations" / "a" / "000.png").write_bytes(b"another")
    assert paired(tmp_path).manifest.digest != before, "other annotations are other data"
    (tmp_path / "annotations" / "b" / "001.png").unlink()
    with pytest.raises(
        UserError,
        match=r"has 300 annotations, but none for 1 of the 300 images .*: b/001.jpg lacks b/001.png",
    ):
        paired(tmp_path)


def test_an_annotation_that_two_images_share_counts_once(tmp_path):
    write(tmp_path / "images", ["a.jpg", "a.jpeg", "b.jpg"])
    write(tmp_path / "annotations", ["a.png", "b.png", "c.png"])
    lines = []
    assert pairs_in(paired(tmp_path, say=lines.append).manifest) == {
        "a.jpg": "a.png",
        "a.jpeg": "a.png",
        "b.jpg": "b.png",
    }
    assert lines == [f"warning: 1 of 3 annotations in {tmp_path}/annotations belong to no image"]


def test_names_that_differ_in_their_ends_alone_are_paired_as_in_cityscapes(tmp_path):
    cities = [f"{city}/{city}_{number:06}_000019" for city in ("aachen", "bonn") for number in range(5)]
    write(tmp_path / "leftImg8bit", [f"{name}_leftImg8bit.png" for name in cities])
    write(
        tmp_path / "gtFine",
        [f"{name}_gtFine_{end}.png" for name in cities for end in ("color", "labelTrainIds")],
    )
    source = paired(tmp_path, "leftImg8bit", "gtFine/**/*_labelTrainIds.png")
    assert pairs_in(source.manifest) == {
        f"{name}_leftImg8bit.png": f"{name}_gtFine_labelTrainIds.png" for name in cities
    }
    with pytest.raises(UserError, match="none for 10 of the 10 images"):
        paired(tmp_path, "leftImg8bit", "gtFine")


def test_what_is_no_pair_of_folders_is_told(tmp_path):
    write(tmp_path / "images", ["a.jpg"])
    write(tmp_path / "annotations", ["a.PNG", "a.png"])
    write(tmp_path / "texts", ["a.txt"])
    for annotations, message in (
        ("annotations", "two annotations for a"),
        ("texts", "holds no PNG"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            paired(tmp_path, annotations=annotations)
