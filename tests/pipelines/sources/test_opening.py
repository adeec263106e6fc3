"""What data paths hold: every image comes back as it was stored, in the order asked for, whatever the
container.
"""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from beit.errors import UserError
from pipelines import storage
from pipelines.sources import Source, open_source

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BEIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Path -> content of 300 files in class folders, one of them empty. No source looks into the content."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3000, 300)
    named = {f"{CLASSES[i // 100]}/deeper/{i:03d}.JPG": rng.bytes(int(size)) for i, size in enumerate(sizes)}
    named["cat/deeper/007.JPG"] = b""
    return named


def write_folder(root: Path, images: dict[str, bytes]) -> None:
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_tar(path: Path, members: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def write_parquet(path: Path, images: dict[str, bytes], *, rows_per_group: int = 40) -> None:
    rows = [
        {"image": {"bytes": content, "path": name}, "label": CLASSES.index(name[:3])}
        for name, content in images.items()
    ]
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    table = pa.Table.from_pylist(rows, schema.with_metadata({"class_names": json.dumps(CLASSES)}))
    pq.write_table(table, path, row_group_size=rows_per_group)


def read_all(source: Source) -> list[tuple[bytes, int]]:
    """(image, label) of every row."""
    found = []
    for index, count in enumerate(source.manifest.rows):
        columns = pickle.loads(pickle.dumps(source.unit(index))).read(np.arange(count), ("image", "label"))
        found += zip(columns["image"].tolist(), columns["label"].tolist(), strict=True)
    return found


@pytest.fixture(params=["parquet", "folder", "tar", "nested tar"])
def path(request, tmp_path: Path, images) -> str:
    """The same images in every container."""
    if request.param == "folder":
        write_folder(tmp_path, images)
    elif request.param == "parquet":
        items = list(images.items())
        write_parquet(tmp_path / "a.parquet", dict(items[:190]))
        write_parquet(tmp_path / "b.parquet", dict(items[190:]))
    elif request.param == "tar":
        write_tar(tmp_path / "all.tar", {f"./top/{name}": content for name, content in images.items()})
    else:
        (tmp_path / "inner").mkdir()
        inner = {
            f"{name}.tar": write_tar(
                tmp_path / "inner" / name,
                {Path(key).name: value for key, value in images.items() if key.startswith(name)},
            )
            for name in CLASSES
        }
        write_tar(tmp_path / "outer.tar", inner)
        return str(tmp_path / "outer.tar")
    return str(tmp_path)


def test_every_image_comes_back_with_its_class(path: str, images):
    source = open_source(path)
    assert source.manifest.total == len(images)
    assert source.manifest.rows.dtype == np.int32
    assert source.manifest.class_names == CLASSES
    expected = [(content, CLASSES.index(name[:3])) for name, content in images.items()]
    assert sorted(read_all(source)) == sorted(expected)


def test_rows_come_in_the_order_asked_for(path: str):
    source = open_source(path)
    whole = source.unit(0).read(np.arange(source.manifest.rows[0]))["image"]
    rows = np.random.default_rng(1).permutation(source.manifest.rows[0])[:17]
    assert source.unit(0).read(rows)["image"].tolist() == whole[rows].tolist()
    assert source.unit(0).read(rows[:0])["image"].tolist() == []


def test_images_keep_the_names_they_had(path: str, images):
    source = open_source(path)
    names = {content: Path(name).name for name, content in images.items()}
    found = source.unit(0).read(np.array([3, 1, 2]), ("image", "image.path"))
    assert [Path(name).name for name in found["image.path"]] == [names[content] for content in found["image"]]


def test_a_manifest_is_the_same_again_and_another_for_other_data(path: str, images):
    first, again = open_source(path), open_source(path)
    assert first.manifest.digest == again.manifest.digest
    changed = sorted(Path(path).rglob("*.*"))[-1] if Path(path).is_dir() else Path(path)
    if changed.suffix == ".parquet":
        write_parquet(changed, dict(list(images.items())[:100]))
    elif changed.suffix == ".tar":
        write_tar(changed, dict(list(images.items())[:100]))
    else:
        changed.unlink()
    after = open_source(path).manifest
    assert after.digest != first.manifest.digest
    assert after.total < first.manifest.total


def test_a_bucket_gives_the_same_data_as_a_folder(path: str, monkeypatch):
    local, asked = open_source(path), set()
    monkeypatch.setattr(
        storage,
        "_file_system",
        lambda root: asked.add(root) or fs.SubTreeFileSystem("/", fs.LocalFileSystem()),
    )
    bucket = open_source(f"s3:/{path}?region=here")
    assert bucket.manifest.digest == local.manifest.digest
    assert read_all(bucket) == read_all(local)
    some = open_source(
        f"s3:/{path}/**?region=here" if Path(path).is_dir() else f"s3:/{path[:-1]}*?region=here"
    )
    assert some.manifest.total == local.manifest.total
    assert {root.partition("?")[2] for root in asked} == {"region=here"}, "the query says where the bucket is"


def test_units_of_a_folder_mix_the_classes(tmp_path: Path, images):
    write_folder(tmp_path, images)
    source = open_source(str(tmp_path))
    assert source.manifest.rows.tolist() == [128, 128, 44]
    for index, count in enumerate(source.manifest.rows):
        labels = source.unit(index).read(np.arange(count), ("label",))["label"]
        assert np.bincount(labels, minlength=3).min() > count * 0.15


def test_a_webdataset_shard_takes_labels_from_its_cls_members(tmp_path: Path):
    members = {}
    for i in range(20):
        members |= {
            f"{i:04d}.depth.png": b"no",
            f"{i:04d}.jpg": b"image %d" % i,
            f"{i:04d}.cls": b"%d" % (i % 4),
            f"{i:04d}.json": b"{}",
        }
    write_tar(tmp_path / "shard-0000.tar", members)
    assert read_all(open_source(str(tmp_path / "*.tar"))) == [(b"image %d" % i, i % 4) for i in range(20)]


def test_names_in_a_tar_reach_nothing_outside(tmp_path: Path):
    write_tar(
        tmp_path / "evil.tar",
        {"../../escaped.jpg": b"x", "/etc/escaped.jpg": b"yy", "._a.jpg": b"resource fork"},
    )
    source = open_source(str(tmp_path / "evil.tar"))
    assert source.unit(0).read(np.arange(2))["image"].tolist() == [b"x", b"yy"]
    assert source.unit(0).describe(0).endswith("evil.tar: ../../escaped.jpg")
    assert list(tmp_path.parents[1].rglob("*escaped*")) == []


def test_a_second_look_reads_the_cache_and_a_broken_cache_is_made_anew(
    path: str, own_cache: Path, monkeypatch
):
    first = open_source(path)
    entries = list((own_cache / "manifests").glob("*.npz"))
    assert len(entries) == (first.manifest.kind != "folder")
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    assert read_all(open_source(path)) == read_all(first)
    monkeypatch.setattr(pq, "read_metadata", None)
    monkeypatch.setattr(tarfile, "open", None)
    assert open_source(path).manifest.digest == first.manifest.digest


def test_a_failing_disk_raises_and_is_no_bad_image(path: str):
    source = open_source(path)
    unit = source.unit(0)
    for file in Path(path).rglob("*") if Path(path).is_dir() else [Path(path)]:
        if file.is_file():
            file.unlink()
    with pytest.raises(OSError, match="No such file"):
        unit.read(np.arange(3))


@pytest.mark.parametrize("column", ["image", "jpg", "anything"])
def test_a_plain_binary_column_will_do(tmp_path: Path, column: str):
    pq.write_table(
        pa.table({column: pa.array([b"1", None, b"3"], pa.binary()), "caption": ["a", "b", "c"]}),
        tmp_path / "x.parquet",
    )
    source = open_source(str(tmp_path))
    assert source.unit(0).read(np.array([2, 1, 0]), ("image", "caption"))["image"].tolist() == [
        b"3",
        b"",
        b"1",
    ]


def test_large_row_groups_are_named_with_the_remedy(tmp_path: Path):
    pq.write_table(pa.table({"image": pa.array([b"x"] * 2500, pa.binary())}), tmp_path / "x.parquet")
    [warning] = open_source(str(tmp_path)).warnings
    assert "2,500 rows" in warning
    assert "beit data pack" in warning


def test_of_splits_that_lie_side_by_side_only_the_one_asked_for_is_read(tmp_path: Path, images):
    for split, number in (("train", 100), ("val", 50)):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", dict(list(images.items())[:number]))
    train = open_source(str(tmp_path), split="train")
    assert train.manifest.total == 100
    assert "val (1)" in train.warnings[0]
    assert open_source(str(tmp_path)).manifest.total == 150
    assert open_source(str(tmp_path / "val-*"), split="train").manifest.total == 50  # named outright


def test_globs_stay_within_a_folder_unless_told(tmp_path: Path, images):
    write_folder(tmp_path, images)
    assert open_source(f"{tmp_path}/cat/**").manifest.total == 100
    assert open_source(f"{tmp_path}/*/deeper/00?.JPG").manifest.total == 10
    assert open_source(f"{tmp_path}/[!c]*/*/*.JPG").manifest.total == 200
    with pytest.raises(UserError, match="matches nothing"):
        open_source(f"{tmp_path}/*.JPG")


def test_mistakes_are_named_with_a_remedy(tmp_path: Path, images):
    (tmp_path / "imagenet").mkdir()
    write_tar(tmp_path / "broken.tar", {"a.jpg": bytes(5000)})
    (tmp_path / "broken.tar").write_bytes((tmp_path / "broken.tar").read_bytes()[:3000])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_text("x")
    (tmp_path / "mixed").mkdir()
    write_folder(tmp_path / "mixed", dict(list(images.items())[:3]))
    write_tar(tmp_path / "mixed" / "a.tar", {})
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "text.parquet")
    (tmp_path / "false.parquet").write_text("PAR1 this is not")
    expected = {
        "imagenet/train": "imagenet, which holds nothing",
        "imagnet": "did you mean .*/imagenet",
        "imagenet": "is an empty folder",
        "notes": "passed over: 1 entry: 1 x .txt",
        "packed": "a.tar.gz is compressed",
        "mixed": "1 tar file and 3 image files: which",
        "text.parquet": "no column of encoded images; its columns: text: string, n: int64",
        "false.parquet": "not a readable Parquet",
        "broken.tar": "not a readable, uncompressed tar",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            open_source(str(tmp_path / name), option="data.val")
        assert "data.val" in caught.value.cause, caught.value


def test_real_shards_hold_images(real_data: Path):
    source = open_source(str(real_data / "imagenet-sample"))
    assert source.manifest.total == 500
    unit = source.unit(len(source.manifest.rows) - 1)
    assert all(image.startswith(b"\xff\xd8") for image in unit.read(np.array([5, 0]))["image"])
    assert str(real_data) in unit.describe(5)
