"""Nothing that lies in a data path vanishes: what is no image is counted by its reason and said."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from beit.errors import UserError
from pipelines import storage
from pipelines.sources import open_source
from pipelines.sources.part import take_part
from pipelines.tools.check import CheckConfig, check


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(buffer, form)
    return buffer.getvalue()


JPEG = encoded()


def put(root: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def opened(path: object, **options):
    """The source, and the lines that it was announced with."""
    lines: list[str] = []
    return open_source(str(path), say=lines.append, **options), lines


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch):
    """Gives the URI of a folder, as if it were in a bucket."""
    monkeypatch.setattr(storage, "_file_system", lambda root: fs.SubTreeFileSystem("/", fs.LocalFileSystem()))
    return lambda path: f"s3:/{path}"


def test_where_nothing_is_passed_over_nothing_is_said(tmp_path: Path):
    put(tmp_path, "cat/1.jpg", "cat/2.JPG", "dog/3.jfif")
    source, lines = opened(tmp_path)
    assert source.manifest.total == 3
    assert source.manifest.passed_over == {}
    assert lines == []


def test_files_are_counted_by_ending_and_the_count_stays_with_the_manifest(tmp_path: Path):
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    before = open_source(str(tmp_path)).manifest.digest
    put(tmp_path, *(f"cat/{i}.txt" for i in range(10)), "README", "dog/labels.JSON", content=b"x")
    source, lines = opened(tmp_path)
    counts = {".txt": 10, "without an ending": 1, ".json": 1}
    assert source.manifest.passed_over == counts
    assert lines == ["data.train: passed over: 12 entries: 10 x .txt, 1 x without an ending, 1 x .json"]
    assert source.manifest.digest == before, "a run that was trained before can be resumed"
    assert pickle.loads(pickle.dumps(source.manifest)).passed_over == counts
    assert take_part(source.manifest, 0.5, 0).passed_over == counts


def test_the_check_says_what_was_passed_over(tmp_path: Path):
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    put(tmp_path, "cat/a.txt", content=b"x")
    result = check(CheckConfig(source=str(tmp_path), sheet=None))
    assert result.passed_over == {".txt": 1}
    assert "passed over: 1 entry: 1 x .txt" in result.lines()


def test_many_reasons_are_said_in_one_line_of_bounded_length(tmp_path: Path):
    put(tmp_path, "1.jpg")
    put(tmp_path, *(f"a.e{i:03d}" for i in range(200)), content=b"x")
    _, [line] = opened(tmp_path)
    assert line.startswith("data.train: passed over: 200 entries: 1 x .e000, ")
    assert line.endswith(", 192 for 192 other reasons")


def test_links_and_what_is_no_file_are_counted_and_the_rest_is_read(tmp_path: Path):
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "cat/self.jpg").symlink_to("self.jpg")
    (tmp_path / "cat/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "cat/below-a-file.jpg").symlink_to("1.jpg/2.jpg")
    (tmp_path / "dog/up").symlink_to(tmp_path)
    (tmp_path / "dog/good.jpg").symlink_to("../cat/1.jpg")
    os.mkfifo(tmp_path / "dog/pipe.jpg")
    source = open_source(str(tmp_path))
    assert source.manifest.total == 3
    assert source.manifest.passed_over == {
        "link that leads nowhere": 3,
        "link to a folder that holds it": 1,
        "pipe, socket or device": 1,
    }


@pytest.mark.parametrize("remote", [False, True])
def test_what_spark_and_delta_leave_beside_the_data_is_passed_over(tmp_path: Path, bucket, remote):
    def shard(name: str, rows: int) -> None:
        put(tmp_path, name)
        pq.write_table(pa.table({"content": pa.array([JPEG] * rows, pa.binary())}), tmp_path / name)

    for label in ("cat", "dog"):
        shard(f"label={label}/part-00000.snappy.parquet", 50)
        put(tmp_path, f"label={label}/.part-00000.snappy.parquet.crc", content=b"crc")
    shard("_temporary/0/_temporary/attempt_7/label=cat/part-00000.snappy.parquet", 30)
    put(tmp_path, "_SUCCESS", content=b"")
    put(tmp_path, "_delta_log/00000000000000000010.checkpoint.parquet")
    put(tmp_path, "label=cat/_delta_log/0.json", content=b"{}")
    source = open_source(bucket(tmp_path) if remote else str(tmp_path))
    assert source.manifest.total == 100
    assert source.manifest.passed_over == {"name that begins with . or _": 6}
    every = open_source(bucket(tmp_path / "**/*.parquet") if remote else f"{tmp_path}/**/*.parquet")
    assert every.manifest.total == 100


def test_names_with_an_underscore_are_read_where_they_are_asked_for(tmp_path: Path):
    put(tmp_path, "_mine/_DSC0001.JPG", "_mine/2.jpg", "_mine/_deeper/3.jpg")
    assert open_source(str(tmp_path / "_mine")).manifest.total == 2, "cameras call photographs _DSC0001.JPG"
    assert open_source(f"{tmp_path}/_mi*/*.jpg").manifest.total == 1
    with pytest.raises(UserError, match="holds no images; passed over: 1 entry: 1 x name that begins with"):
        open_source(str(tmp_path))


def lfs_pointer(i: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{i:064x}\nsize 482113{i}\n".encode()


@pytest.mark.parametrize("ending", ["parquet", "tar", "jpg"])
def test_pointers_of_git_lfs_are_named_with_the_command_that_brings_the_data(tmp_path: Path, ending):
    for i in range(3):
        put(tmp_path, f"{i}.{ending}", content=lfs_pointer(i))
    with pytest.raises(UserError) as refused:
        open_source(str(tmp_path))
    assert refused.value.cause == (
        f"data.train={tmp_path} holds no images; passed over: 3 entries: 3 x Git LFS pointer (`git lfs pull` "
        "brings the data)"
    )
    assert refused.value.remedy == f"fetch the data: run `git lfs pull` in {tmp_path}"


def test_a_set_of_which_a_part_was_never_fetched_is_read_and_the_rest_counted(tmp_path: Path):
    put(tmp_path, *(f"cat/{i}.jpg" for i in range(50)))
    for i in range(40):
        put(tmp_path, f"dog/{i}.jpg", content=lfs_pointer(i))
    for i in range(12):
        key = f"MD5E-s482113--{i:032x}.jpg"
        (tmp_path / f"dog/annexed{i}.jpg").symlink_to(f"../../.git/annex/objects/aa/bb/{key}/{key}")
    put(tmp_path, "dog/unlocked.jpg", content=b"/annex/objects/MD5E-s482113--" + b"0" * 32 + b".jpg\n")
    source = open_source(str(tmp_path))
    assert source.manifest.total == 50
    assert source.manifest.passed_over == {
        "Git LFS pointer (`git lfs pull` brings the data)": 40,
        "link of git-annex whose content is not here (`git annex get` brings it)": 12,
        "git-annex pointer (`git annex get` brings the data)": 1,
    }


def test_a_folder_of_links_of_git_annex_alone_is_not_called_empty(tmp_path: Path):
    (tmp_path / "1.jpg").symlink_to("../.git/annex/objects/aa/bb/MD5E-s1--0.jpg")
    with pytest.raises(UserError, match=r"1 x link of git-annex .*\nfetch the data: run `git annex get"):
        open_source(str(tmp_path))


def test_images_without_an_image_ending_are_known_by_their_content(tmp_path: Path):
    put(tmp_path, "cat/1.jpg", *(f"owl/{i}" for i in range(10)))
    put(tmp_path, *(f"owl/{i}.jpg_large" for i in range(3)), content=encoded("PNG"))
    put(tmp_path, "owl/notes.txt", "owl/x.dat", content=b"no image")
    source, lines = opened(tmp_path)
    assert source.manifest.passed_over == {"without an ending": 10, ".jpg_large": 3, ".txt": 1, ".dat": 1}
    command = f"find {tmp_path} -type f ! -name '*.*' -exec mv {{}} {{}}.jpg \\;"
    assert lines[:-1] == [
        (
            "warning: 10 files without an ending look like JPEG (all that were looked at): rename to end in "
            f".jpg, by {command}"
        ),
        (
            "warning: 3 files with the ending .jpg_large look like PNG (all that were looked at): rename to "
            "end in .png"
        ),
    ]
    assert os.system(command) == 0
    assert open_source(str(tmp_path)).manifest.total == 11


def test_files_without_an_ending_alone_are_refused_with_what_they_are(tmp_path: Path):
    put(tmp_path, *(f"owl/{i}" for i in range(10)))
    with pytest.raises(UserError, match=r"\n10 files without an ending look like JPEG .*: rename"):
        open_source(str(tmp_path))


def test_formats_that_are_not_decoded_are_said_beside_those_that_are(tmp_path: Path):
    put(tmp_path, "1.jpg")
    put(tmp_path, "2.HEIC", "3.heic", "4.jxl", content=b"x")
    source, lines = opened(tmp_path)
    assert source.manifest.passed_over == {".heic": 2, ".jxl": 1}
    assert lines[0] == (
        "warning: 3 images of formats that are not decoded (.heic, .jxl): convert to JPEG or PNG"
    )


def test_names_with_question_marks_and_hashes_are_read_from_a_bucket(tmp_path: Path, bucket):
    names = ("cat/photo.jpg?w=3.jpg", "cat/n#1.jpg", "dog#2/a?b.jpg", "dog#2/50%25.jpg")
    for i, name in enumerate(names):
        put(tmp_path, name, content=b"image %d" % i)
    put(tmp_path, "cat/photo.jpg?w=300&h=200")
    local = open_source(str(tmp_path))
    for path in (
        bucket(tmp_path),
        f"{bucket(tmp_path)}?region=here",
        f"{bucket(tmp_path)}/**/*.jpg?region=here",
    ):
        source = open_source(path)
        assert source.manifest.total == 4
        assert source.manifest.class_names == ("cat", "dog#2")
        found = source.unit(0).read(np.arange(4))["image"].tolist()
        assert found == local.unit(0).read(np.arange(4))["image"].tolist()
        assert sorted(found) == [b"image %d" % i for i in range(4)]
    whole = f"{bucket(tmp_path)}/cat/n#1.jpg"
    assert open_source(whole).unit(0).read(np.arange(1))["image"].tolist() == [b"image 1"]


def test_a_bucket_counts_as_a_folder_does(tmp_path: Path, bucket):
    put(tmp_path, "cat/1.jpg", "cat/.cache/a.jpg", "cat/.cache/b.jpg", "cat/._1.jpg")
    put(tmp_path, "cat/2.txt", content=b"x")
    local, remote = open_source(str(tmp_path)).manifest, open_source(bucket(tmp_path)).manifest
    assert remote.passed_over == local.passed_over == {"name that begins with . or _": 2, ".txt": 1}
    assert remote.digest == local.digest
