"""Tars as people find them: with links, joined, with several images a key. Every image is read or counted."""

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from beit.errors import UserError
from pipelines import storage
from pipelines.sources import open_source
from pipelines.sources.base import ChosenColumns


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def tar_of(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of files, and of members that are no files."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def rows(source) -> list[tuple[bytes, int]]:
    """Every image with its label, in the order of the tars."""
    found = []
    for unit, count in enumerate(source.manifest.rows):
        columns = source.unit(unit).read(np.arange(count), ("image", "label"))
        found += zip(columns["image"].tolist(), columns["label"].tolist(), strict=True)
    return found


def images(prefix: str, count: int) -> dict[str, bytes]:
    return {f"{prefix}/{i:03d}.jpg": f"{prefix} {i}".encode() for i in range(count)}


def test_links_in_a_tar_are_images_of_their_own_class(tmp_path: Path):
    for name, content in (images("cat", 20) | images("dog", 20)).items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(content)
    (tmp_path / "src/zebra").mkdir()
    for i in range(20):
        os.link(tmp_path / f"src/cat/{i:03d}.jpg", tmp_path / f"src/zebra/h{i:03d}.jpg")
        (tmp_path / f"src/zebra/s{i:03d}.jpg").symlink_to(f"../dog/{i:03d}.jpg")
    (tmp_path / "tar").mkdir()
    command = ["tar", "-C", tmp_path / "src", "--sort=name", "-cf", tmp_path / "tar/all.tar", "."]
    subprocess.run(command, check=True)
    from_tar = open_source(str(tmp_path / "tar"))
    assert from_tar.manifest.passed_over == {}
    assert from_tar.manifest.class_names == ("cat", "dog", "zebra")
    assert sorted(rows(from_tar)) == sorted(rows(open_source(str(tmp_path / "src"))))


def test_links_that_lead_out_of_a_tar_or_in_a_circle_are_counted(tmp_path: Path):
    members = images("cat", 2) | images("dog", 2)
    for name, target in {
        "dog/first.jpg": "second.jpg",  # a link to a link that comes later
        "dog/second.jpg": "../cat/001.jpg",
        "dog/out.jpg": "../../etc/passwd",
        "dog/absolute.jpg": "/etc/passwd",
        "dog/missing.jpg": "../cat/999.jpg",
        "dog/circle.jpg": "circle.jpg",
        "eel": "cat",
    }.items():
        members[name] = link(name, target)
    members["pipe.jpg"] = link("pipe.jpg", "", tarfile.FIFOTYPE)
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    source = open_source(str(tmp_path))
    assert rows(source) == [
        (b"cat 0", 0),
        (b"cat 1", 0),
        (b"dog 0", 1),
        (b"dog 1", 1),
        (b"cat 1", 1),
        (b"cat 1", 1),
    ]
    assert source.manifest.passed_over == {
        "link that leads out of its tar": 4,
        "pipe, socket or device": 1,
        "link to a folder in a tar": 1,
    }


def test_labels_that_are_links_are_followed(tmp_path: Path):
    """Programs that save space link all equal files, and .cls members are equal often."""
    members = {"0.jpg": b"a", "0.cls": b"3", "1.jpg": b"b", "1.cls": link("1.cls", "0.cls", tarfile.LNKTYPE)}
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    assert rows(open_source(str(tmp_path))) == [(b"a", 3), (b"b", 3)]


def test_links_in_a_tar_within_a_tar_are_followed(tmp_path: Path):
    inner = tar_of({"1.jpg": b"one", "2.jpg": link("2.jpg", "1.jpg"), "3.jpg": link("3.jpg", "../x.jpg")})
    outer = {"early.jpg": link("early.jpg", "late.jpg"), "a.tar": inner, "b.tar": inner, "late.jpg": b"late"}
    (tmp_path / "a.tar").write_bytes(tar_of(outer))
    source = open_source(str(tmp_path))
    found = source.unit(0).read(np.arange(6))["image"].tolist()
    assert found == [b"late", b"one", b"one", b"one", b"one", b"late"]
    assert source.manifest.passed_over == {"link that leads out of its tar": 2}


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path):
    (tmp_path / "joined.tar").write_bytes(
        tar_of(images("cat", 30)) + tar_of({}) + tar_of(images("dog", 30)) + bytes(50_000)
    )
    source = open_source(str(tmp_path))
    assert source.manifest.class_names == ("cat", "dog")
    assert sorted(rows(source)) == sorted(
        (content, label) for label, name in enumerate(("cat", "dog")) for content in images(name, 30).values()
    )
    assert source.manifest.passed_over == {}


def test_joined_shards_that_use_the_same_keys_keep_their_labels(tmp_path: Path):
    first, second = ({"0.jpg": name, "0.cls": label} for name, label in ((b"a", b"1"), (b"b", b"2")))
    (tmp_path / "joined.tar").write_bytes(tar_of(first) + tar_of(second))
    assert rows(open_source(str(tmp_path))) == [(b"a", 1), (b"b", 2)]


def test_what_stands_behind_the_end_of_a_tar_is_said(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of({"1.jpg": b"x"}) + b"no header of a tar" * 100)
    source = open_source(str(tmp_path))
    assert source.manifest.passed_over == {"something behind the end mark of a tar": 1}


def test_a_tar_that_is_damaged_in_the_middle_is_refused_and_not_read_by_half(tmp_path: Path):
    whole = bytearray(tar_of(images("cat", 30)))
    whole[10 * 1024 : 10 * 1024 + 100] = b"\xff" * 100  # the header of the eleventh image
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.tar is not a readable, .* at byte 10,240 is no header"):
        open_source(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(whole[: 5 * 1024])  # Some writers leave out the end mark.
    assert open_source(str(tmp_path)).manifest.total == 5


def test_members_that_are_no_images_are_counted(tmp_path: Path):
    members = {"cat/1.jpg": b"x", "cat/1.txt": b"a caption", "cat/1.json": b"{}", "cat/2.HEIC": b"x"}
    members |= {"cat/._1.jpg": b"x", "./.cache/1.jpg": b"x", "cat/old.tar.gz": b"x", "cat/_DSC1.jpg": b"y"}
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    (tmp_path / "b.tar").write_bytes(tar_of({"dog/1.jpg": b"x", "dog/1.txt": b"a caption"}))
    lines: list[str] = []
    source = open_source(str(tmp_path), say=lines.append)
    assert source.manifest.total == 3
    assert source.manifest.passed_over == {
        ".txt": 2,
        "name that begins with . or _": 2,
        ".json": 1,
        ".heic": 1,
        ".gz": 1,
    }
    assert lines == [
        (
            "data.train: passed over: 7 entries: 2 x .txt, 2 x name that begins with . or _, 1 x .json, "
            "1 x .heic, 1 x .gz"
        )
    ]
    assert open_source(str(tmp_path)).manifest.passed_over == source.manifest.passed_over, (
        "from the cache too"
    )


def sample(endings: tuple[str, ...], count: int) -> dict[str, bytes]:
    """Samples of WebDataset, each with these files."""
    return {
        f"{i:03d}.{ending}": b"%d" % (i % 4) if ending == "cls" else f"{ending} {i}".encode()
        for i in range(count)
        for ending in endings
    }


@pytest.mark.parametrize(
    ("endings", "image"),
    [
        (("image.jpg", "mask.png", "cls"), "image.jpg"),
        (("jpg", "seg.png", "cls"), "jpg"),
        (("cls", "a.PNG", "img.PNG", "z.PNG"), "img.PNG"),
    ],
)
def test_of_several_images_a_key_the_one_that_is_called_so_is_read(tmp_path: Path, endings, image):
    (tmp_path / "a.tar").write_bytes(tar_of(sample(endings, 40)))
    source = open_source(str(tmp_path))
    assert rows(source) == [(f"{image} {i}".encode(), i % 4) for i in range(40)]
    assert source.manifest.passed_over == {
        f"further image of a key (.{ending.lower()})": 40
        for ending in endings
        if ending not in (image, "cls")
    }


@pytest.mark.parametrize("endings", [("jpg", "png", "cls"), ("left.png", "right.png")])
def test_several_images_a_key_of_which_none_is_called_so_are_refused_by_name(tmp_path: Path, endings):
    (tmp_path / "a.tar").write_bytes(tar_of(sample(endings, 40)))
    with pytest.raises(UserError) as refused:
        open_source(str(tmp_path), option="data.train")
    assert refused.value.cause == (
        f"data.train: {tmp_path}/a.tar has several images for 40 keys, such as 000.{endings[0]} and "
        f"000.{endings[1]}: which of them is the image?"
    )
    assert refused.value.remedy == f"choose by --data.image {endings[0]}, the end of its name"


def test_the_image_of_a_key_can_be_chosen_by_its_ending(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(sample(("jpg", "png", "cls"), 40)))
    found = {}
    for ending in ("jpg", ".PNG"):
        source = open_source(str(tmp_path), columns=ChosenColumns(image=ending))
        name, other = ("jpg", "png") if ending == "jpg" else ("png", "jpg")
        assert rows(source) == [(f"{name} {i}".encode(), i % 4) for i in range(40)]
        assert source.manifest.passed_over == {f"further image of a key (.{other})": 40}
        found[source.manifest.digest] = source
    assert len(found) == 2, "tokens of the one are no tokens of the other"
    with pytest.raises(UserError, match="hold no images; passed over: 80 entries"):
        open_source(str(tmp_path), columns=ChosenColumns(image="webp"))
    with pytest.raises(
        UserError, match=r"--data\.label weather names a column of Parquet shards, and .* tars"
    ):
        open_source(str(tmp_path), columns=ChosenColumns(image="jpg", label="weather"))


def test_photographs_with_dots_in_their_names_are_no_samples(tmp_path: Path):
    members = {f"cat/IMG.2019.{i:02d}.jpg": b"%d" % i for i in range(40)}
    members |= {f"dog/{i}.jpg": b"x" for i in range(300)}
    (tmp_path / "a.tar").write_bytes(tar_of(members | {"dog/7.png": b"y"}))
    source = open_source(str(tmp_path))
    assert source.manifest.total == 341
    assert source.warnings == (
        f"{tmp_path}/a.tar has several images for 1 key, such as dog/7.jpg and dog/7.png: all of them are "
        "read",
    )


def test_split_folders_in_a_tar_are_no_classes(tmp_path: Path):
    names = [f"./{split}/{name}/1.jpg" for split in ("train", "val") for name in ("cat", "dog", "owl")]
    (tmp_path / "all.tar").write_bytes(tar_of(dict.fromkeys(names, b"x")))
    source = open_source(str(tmp_path), split="train")
    assert source.manifest.class_names == ("cat", "dog", "owl")
    assert [label for _, label in rows(source)] == [0, 1, 2, 0, 1, 2]
    assert source.warnings == (
        "the tars hold the splits train and val as folders, and all of them are read: give tars of one split",
    )


def test_a_bucket_gives_the_images_that_a_disk_gives(tmp_path: Path, monkeypatch):
    members = images("cat", 3) | {"dog/l.jpg": link("dog/l.jpg", "../cat/001.jpg")}
    (tmp_path / "a.tar").write_bytes(tar_of(members) + tar_of(images("eel", 2)))
    local = rows(open_source(str(tmp_path)))
    monkeypatch.setattr(
        storage, "_file_system", lambda root: storage.fs.SubTreeFileSystem("/", storage.fs.LocalFileSystem())
    )
    assert rows(open_source(f"s3:/{tmp_path}")) == local
    assert len(local) == 6
