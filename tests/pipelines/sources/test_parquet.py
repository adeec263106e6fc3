"""Parquet as other programs write it: huge and tiny row groups, missing bytes, other types, shards that
differ.
"""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.errors import UserError
from pipelines.sources import open_source, parquet
from pipelines.sources.base import ChosenColumns, listing_digest
from pipelines.sources.labels import label_source
from pipelines.sources.listing import find_files

FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGES = [b"image %d" % i * 50 for i in range(60)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def struct(images, paths=None):
    return pa.array(
        [
            {"bytes": data, "path": path}
            for data, path in zip(images, paths or [None] * len(images), strict=True)
        ],
        FILE,
    )


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


def read_all(source, column="image"):
    parts = [
        pickle.loads(pickle.dumps(source.unit(index))).read(np.arange(rows), (column,))[column]
        for index, rows in enumerate(source.manifest.rows.tolist())
    ]
    return np.concatenate(parts).tolist()


@pytest.mark.parametrize("kind", ["struct", "binary", "a column that is stored once"])
@pytest.mark.parametrize("limit", [1, 100])
def test_a_row_group_that_does_not_fit_into_one_piece_is_read_in_batches(kind, limit, tmp_path, monkeypatch):
    images = IMAGES[:20] * 3 if kind.endswith("once") else IMAGES
    column = struct(images, [f"{i}.jpg" for i in range(60)]) if kind == "struct" else pa.array(images)
    write(tmp_path / "0.parquet", {"image": column, "label": range(60)})
    rows = np.random.default_rng(0).permutation(60)[:31]
    whole = open_source(str(tmp_path)).unit(0).read(rows, ("image", "label"))
    monkeypatch.setattr(parquet, "_AT_ONCE_BYTES", limit)
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(parquet.pq.ParquetFile, "read_row_groups", None)
    unit = open_source(str(tmp_path)).unit(0)
    found = unit.read(rows, ("image", "label"))
    assert found["image"].tolist() == whole["image"].tolist() == [images[row] for row in rows]
    assert found["label"].tolist() == rows.tolist()
    assert unit.read(rows[:0])["image"].tolist() == []
    if kind == "struct":
        assert unit.read(rows, ("image.path",))["image.path"].tolist() == [f"{row}.jpg" for row in rows]


def test_what_turns_out_to_be_too_large_is_read_in_smaller_and_smaller_batches(tmp_path, monkeypatch):
    """A footer may say less than comes out: a compressed column, or values that are stored once."""
    write(tmp_path / "0.parquet", {"image": pa.array(IMAGES)})
    sizes, read = [], pq.ParquetFile.iter_batches

    def limited(file, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 3:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked arrays")
        return read(file, batch_size=batch_size, **options)

    def too_large(file, groups, columns):
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked arrays")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", limited)
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", too_large)
    assert read_all(open_source(str(tmp_path))) == IMAGES
    assert sizes == [30, 7, 1]


def write_groups(path, images, rows):
    with pq.ParquetWriter(path, pa.schema({"image": FILE, "label": pa.int64()})) as writer:
        for start in range(0, len(images), rows):
            part = images[start : start + rows]
            labels = range(start, start + len(part))
            table = pa.table({"image": struct(part), "label": labels}, schema=writer.schema)
            writer.write_table(table, row_group_size=rows)


def test_tiny_row_groups_that_follow_each_other_are_one_unit_with_the_remedy(tmp_path):
    images = [b"%d" % i for i in range(300)]
    write_groups(tmp_path / "a.parquet", images, 1)
    write_groups(tmp_path / "b.parquet", images[:100], 50)
    source = open_source(str(tmp_path))
    assert source.manifest.rows.tolist() == [128, 128, 44, 50, 50]
    assert read_all(source) == images + images[:100]
    assert read_all(source, "label") == source.manifest.column("label").tolist()
    assert source.unit(1).read(np.array([5, 0]))["image"].tolist() == [images[133], images[128]]
    assert source.unit(1).describe(5).endswith("a.parquet, row groups 128 to 255, row 5 of them")
    [warning] = source.warnings
    assert "tiny" in warning
    assert "beit data pack" in warning


@pytest.mark.parametrize(("images", "rows"), [(500, 8), (63, 1), (400, 100)])
def test_other_row_groups_are_units_as_ever_with_the_same_digest(images, rows, tmp_path):
    write_groups(tmp_path / "a.parquet", [b"%d" % i for i in range(images)], rows)
    manifest = open_source(str(tmp_path)).manifest
    expected = [rows] * (images // rows) + [images % rows] * (images % rows > 0)
    assert manifest.rows.tolist() == expected
    entries = find_files(str(tmp_path), option="data.train").entries
    assert manifest.digest == listing_digest("parquet", entries, np.array(expected, np.int32))


def test_large_images_alone_in_their_row_groups_are_not_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_TINY_BYTES", 1000)
    write_groups(tmp_path / "a.parquet", [np.random.default_rng(0).bytes(2000)] * 70, 1)
    assert open_source(str(tmp_path)).manifest.rows.tolist() == [1] * 70


def test_images_without_bytes_are_counted_at_the_start(tmp_path):
    images = [None if i % 3 == 0 else image for i, image in enumerate(IMAGES)]
    write(tmp_path / "0.parquet", {"jpg": pa.array(images, pa.binary()), "status": ["?"] * 60})
    source = open_source(str(tmp_path))
    [warning] = source.warnings
    assert warning.startswith("20 of 60 images have no bytes: the column jpg is null there")
    assert read_all(source) == [image or b"" for image in images]


def test_paths_without_bytes_are_refused_and_named(tmp_path):
    column = struct([None] * 60, [f"/home/anna/{i}.jpg" for i in range(60)])
    write(tmp_path / "0.parquet", {"image": column})
    with pytest.raises(UserError, match=r"null in all 60 rows; .* paths only, such as /home/anna/0\.jpg"):
        open_source(str(tmp_path))
    write(tmp_path / "0.parquet", {"image": pa.nulls(60)})
    with pytest.raises(UserError, match=r"no image of .*0\.parquet has bytes: the column image is null"):
        open_source(str(tmp_path))


def test_a_shard_of_failed_downloads_has_no_type_of_its_own(tmp_path):
    write(tmp_path / "0.parquet", {"image": struct(IMAGES), "label": range(60)})
    write(tmp_path / "1.parquet", {"image": pa.nulls(5), "label": range(5)})
    source = open_source(str(tmp_path))
    assert read_all(source) == IMAGES + [b""] * 5
    assert "5 of 65 images have no bytes" in source.warnings[0]


def arrow_types():
    view = pa.array(IMAGES, pa.binary()).cast(pa.binary_view())
    return {
        "binary_view": view,
        "struct of views": pa.StructArray.from_arrays(
            [view, pa.array(["a.jpg"] * 60).cast(pa.string_view())], ["bytes", "path"]
        ),
        "dictionary": pa.array(IMAGES, pa.binary()).dictionary_encode(),
        "large_binary": pa.array(IMAGES, pa.large_binary()),
        "path first": pa.StructArray.from_arrays(
            [pa.nulls(60, pa.string()), pa.array(IMAGES)], ["path", "bytes"]
        ),
    }


@pytest.mark.parametrize("kind", arrow_types())
def test_the_same_bytes_in_other_types_of_arrow_are_read(kind, tmp_path):
    write(tmp_path / "0.parquet", {"image.jpg": arrow_types()[kind], "label": range(60)})
    source = open_source(str(tmp_path))
    assert read_all(source) == IMAGES
    if kind == "struct of views":
        assert set(read_all(source, "image.path")) == {"a.jpg"}


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([[{"bytes": b"x", "path": None}]], pa.list_(FILE)), r"image\[\] \(list<"),
        (pa.StructArray.from_arrays([struct([b"x"])], ["photo"]), r"image\.photo \(struct<photo: struct<"),
        (pa.array([[[b"x"]]], pa.list_(pa.list_(pa.binary()))), r"image\[\]\[\] \(list<"),
    ],
)
def test_images_inside_lists_and_structs_are_refused_by_their_path_and_type(column, named, tmp_path):
    write(tmp_path / "0.parquet", {"image": column})
    with pytest.raises(UserError, match=f"inside lists or structs, which are not read: {named}"):
        open_source(str(tmp_path))


def test_a_column_of_masks_beside_the_images_is_the_annotation_whatever_its_name(tmp_path):
    masks = [b"mask %d" % i for i in range(60)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "Image"}}
    table = pa.table({"image": struct(IMAGES), "label": struct(masks)}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "0.parquet")
    source = open_source(str(tmp_path))
    assert source.manifest.columns == ("image", "image.path", "annotation")
    assert source.manifest.label_column is None
    assert read_all(source, "annotation") == masks
    with pytest.raises(UserError, match="has no labels"):
        label_source(source)


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        (pa.nulls(3), [0, 1, 2], [None, None, None, 0, 1, 2]),
        ([0, 1, 2], pa.nulls(3), [0, 1, 2, None, None, None]),
        ([0, 1, 2], pa.array([2.0, None, 0.0]), [0, 1, 2, 2, None, 0]),
        ([False, True, True], [2, 0, 1], [0, 1, 1, 2, 0, 1]),
        (["b", "a", "b"], pa.nulls(3), ["b", "a", "b", None, None, None]),
    ],
)
def test_labels_of_shards_whose_types_differ_are_of_one_type(first, second, labels, tmp_path):
    for name, column in (("0", first), ("1", second)):
        write(tmp_path / f"{name}.parquet", {"image": pa.array(IMAGES[:3]), "label": column})
    source = open_source(str(tmp_path))
    assert source.manifest.label_column == "label"
    missing = labels.count(None)
    if missing:
        with pytest.raises(UserError, match=f"{missing} of 6 labels are none of 0 to"):
            label_source(source)
    else:
        assert label_source(source).manifest.labels.tolist() == labels


def test_labels_that_are_numbers_here_and_names_there_are_refused_with_both_shards(tmp_path):
    for name, column in (("0", pa.nulls(3)), ("1", [0, 1, 2]), ("2", ["0", "1", "2"])):
        write(tmp_path / f"{name}.parquet", {"image": pa.array(IMAGES[:3]), "label": column})
    source = open_source(str(tmp_path))
    [warning] = source.warnings
    assert "the column label is int64 in" in warning
    assert source.manifest.label_column is None
    for column in (None, "label"):
        with pytest.raises(UserError, match=r"int64 in .*1\.parquet and string in .*2\.parquet"):
            label_source(source, column=column)


def test_a_shard_that_was_replaced_by_one_of_the_same_size_is_told_by_its_footer(tmp_path):
    write(tmp_path / "0.parquet", {"image": pa.array([b"first", b"other"])}, compression="none")
    before, size = open_source(str(tmp_path)).manifest, (tmp_path / "0.parquet").stat().st_size
    write(tmp_path / "0.parquet", {"image": pa.array([b"third", b"other"])}, compression="none")
    assert (tmp_path / "0.parquet").stat().st_size == size
    after = open_source(str(tmp_path)).manifest
    assert after.digest == before.digest
    assert after.content != before.content
    content = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "0.parquet").unlink()
    (tmp_path / "0.parquet").write_bytes(content)
    assert open_source(str(tmp_path)).manifest.content == after.content, "a copy is the same data"


def test_columns_that_the_user_names_are_taken(tmp_path):
    masks, others = [b"mask %d" % i for i in range(60)], [b"other %d" % i for i in range(60)]
    columns = {
        "image": struct(IMAGES),
        "depth": struct(others),
        "ids": struct(masks),
        "label": [0] * 60,
        "species": range(60),
    }
    write(tmp_path / "0.parquet", columns)
    usual = open_source(str(tmp_path))
    assert (usual.manifest.label_column, usual.manifest.columns[2:]) == (
        "label",
        ("depth", "ids", "label", "species"),
    )
    named = open_source(
        str(tmp_path), columns=ChosenColumns(image="depth", label="species", annotation="ids")
    )
    assert read_all(named) == others
    assert read_all(named, "annotation") == masks
    assert label_source(named).manifest.labels.tolist() == list(range(60))
    assert named.manifest.digest != usual.manifest.digest, "tokens of other images are not these images'"
    same = open_source(str(tmp_path), columns=ChosenColumns(image="image", label="species"))
    assert same.manifest.digest == usual.manifest.digest


@pytest.mark.parametrize(
    ("what", "name", "option", "message"),
    [
        (
            "image",
            "photo",
            "data.train",
            r"--data\.image photo: .* is not there.*; its columns: image: struct",
        ),
        ("image", "label", "source", "--image label: that column .* is int64, not encoded files"),
        ("annotation", "label", "data.val", r"--data\.annotation label: that column .* is int64"),
        ("label", "species", "source", r"--label species is no column of source: .*0\.parquet has image"),
    ],
)
def test_a_named_column_that_will_not_do_is_refused_with_what_there_is(what, name, option, message, tmp_path):
    write(tmp_path / "0.parquet", {"image": struct(IMAGES), "label": [0] * 60})
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path), option=option, columns=ChosenColumns(**{what: name}))


def test_of_several_unknown_columns_of_images_one_must_be_named(tmp_path):
    write(tmp_path / "0.parquet", {"front": struct(IMAGES), "back": struct(IMAGES[::-1])})
    with pytest.raises(UserError, match="2 columns of encoded images, front, back") as told:
        open_source(str(tmp_path))
    assert "--data.image" in told.value.remedy
    assert read_all(open_source(str(tmp_path), columns=ChosenColumns(image="back"))) == IMAGES[::-1]


def test_columns_are_those_of_parquet(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"--data\.image photo names a column of Parquet shards, and .* folder"
    ):
        open_source(str(tmp_path), columns=ChosenColumns(image="photo"))
