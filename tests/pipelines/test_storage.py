"""The same operations on local paths and on a bucket (a folder that stands in for one)."""

from pathlib import Path

import pytest
from pyarrow import fs

from beit.errors import UserError
from pipelines import storage


@pytest.fixture(params=["local", "bucket"])
def place(request, tmp_path: Path, monkeypatch) -> str:
    """A folder, local or as s3://."""
    if request.param == "local":
        return str(tmp_path / "bucket")
    monkeypatch.setattr(
        storage, "_file_system", lambda root: fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    )
    (tmp_path / "bucket").mkdir()
    return "s3://bucket"


def test_what_is_written_is_listed_and_read(place: str):
    for name in ("one.txt", "one.txt-of", ".hidden"):
        storage.write_text(storage.join(place, name), f"content of {name}")
    if not storage.is_remote(place):
        storage.write_bytes(storage.join(place, "deep", "er", "two.bin"), b"12345")
    expected = ["deep/er/two.bin"] * (not storage.is_remote(place)) + ["one.txt", "one.txt-of"]
    assert [entry.name for entry in storage.list_files(place)] == expected
    assert storage.read_text(storage.join(place, "one.txt")) == "content of one.txt"
    assert storage.entry(storage.join(place, "one.txt")).size == len("content of one.txt")
    assert storage.entry(storage.join(place, "three.txt")) is None
    assert storage.exists(place)
    assert not storage.exists(storage.join(place, "three.txt"))


def test_a_file_that_was_broken_off_leaves_nothing_behind(place: str, tmp_path: Path):
    def interrupted() -> None:
        with storage.open_output(storage.join(place, "part.bin")) as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "bucket").iterdir()) == []


def test_overwriting_replaces_the_whole_content(tmp_path: Path):
    storage.write_text(tmp_path / "a", "a long old text")
    storage.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_links_that_lead_in_a_circle_end(tmp_path: Path):
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "a.jpg").write_bytes(b"")
    (tmp_path / "classes" / "again").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "classes")
    assert [entry.name for entry in storage.list_files(tmp_path)] == ["classes/a.jpg", "linked/a.jpg"]


def test_joining_keeps_what_a_uri_needs():
    assert storage.join("s3://bucket/a/", "b", "c") == "s3://bucket/a/b/c"
    assert (
        storage.join("s3://bucket/a?endpoint_override=localhost:9000", "b")
        == "s3://bucket/a/b?endpoint_override=localhost:9000"
    )
    assert storage.join("/", "a") == "/a"
    assert storage.join("file:///", "a") == "file:///a"
    assert storage.join("s3://", "bucket", "a") == "s3://bucket/a"
    assert storage.resolve("file:///a/b")[1] == "/a/b"
    assert storage.resolve("s3://bucket/a?endpoint_override=localhost:9000&region=us-east-1")[1] == "bucket/a"


ODD_NAMES = (
    "plain.jpg",
    "photo.jpg?w=300&h=200",
    "a?region=elsewhere",
    "n#1.jpg",
    "50%.jpg",
    "%20.jpg",
    "b ?#&=.jpg",
    "é\t.jpg",
    "what?",
)


@pytest.mark.parametrize("query", ["", "?endpoint_override=http://host:9000&region=here"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_on_a_bucket_is_never_taken_for_a_part_of_the_uri(name: str, query: str, monkeypatch):
    asked = []
    monkeypatch.setattr(storage, "_file_system", asked.append)
    uri = storage.join(f"s3://bucket/a{query}", "deep", name)
    assert storage.resolve(uri)[1] == f"bucket/a/deep/{name}"
    assert storage.resolve(storage.absolute(uri))[1] == f"bucket/a/deep/{name}"
    assert storage.name(uri) == name
    assert storage.resolve(storage.parent(uri))[1] == "bucket/a/deep"
    assert storage.resolve(storage.join(uri, "x"))[1] == f"bucket/a/deep/{name}/x"
    assert set(asked) == {f"s3://bucket{query}"}


def test_odd_names_on_a_bucket_are_listed_read_and_written(place: str):
    for name in ODD_NAMES:
        storage.write_text(storage.join(place, name), f"content of {name}")
    assert [entry.name for entry in storage.list_files(place)] == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert storage.read_text(storage.join(place, name)) == f"content of {name}"
        assert storage.entry(storage.join(place, name)).name == name


@pytest.mark.parametrize(
    ("uri", "absolute", "parent", "name"),
    [
        ("s3://bucket/runs/one/", "s3://bucket/runs/one", "s3://bucket/runs", "one"),
        (
            "s3://bucket/one//?endpoint_override=http://host/",
            "s3://bucket/one?endpoint_override=http://host/",
            None,
            "one",
        ),
        ("gs://bucket/", "gs://bucket", "gs://bucket", "bucket"),
        ("/runs/one/", "/runs/one", "/runs", "one"),
        ("/runs", "/runs", "/", "runs"),
        ("file:///runs/one", "/runs/one", "/runs", "one"),
        ("FILE:///runs/one", "/runs/one", "/runs", "one"),
        ("S3://Bucket/Runs/One/", "s3://Bucket/Runs/One", "s3://Bucket/Runs", "One"),
        ("s3://", "s3://", "s3://", ""),
        ("mylist://", "mylist://", "mylist://", ""),
        ("MyList:///", "mylist://", "mylist://", ""),
    ],
)
def test_a_path_is_its_parent_and_its_name(uri: str, absolute: str, parent: str | None, name: str):
    parent = parent or "s3://bucket?endpoint_override=http://host/"
    assert (storage.absolute(uri), storage.parent(uri), storage.name(uri)) == (absolute, parent, name)
    if parent != absolute:
        assert storage.join(parent, name) == absolute


@pytest.mark.parametrize(
    ("path", "folder", "lies"),
    [
        ("/a/b/c", "/a/b", True),
        ("/a/b", "/a/b/", True),
        ("/a/bc", "/a/b", False),
        ("s3://b/x/y?r=1", "s3://b/x?r=1", True),
        ("/b/x", "s3://b/x", False),
        ("S3://b/x", "s3://b", True),
        ("/b", "mylist://b", False),
        ("mylist://b", "mylist://b", False),
    ],
)
def test_what_lies_in_a_folder(path: str, folder: str, lies: bool, monkeypatch):
    monkeypatch.setattr(storage, "_file_system", lambda root: root)  # No bucket is asked.
    assert storage.lies_in(path, folder) == lies


@pytest.mark.parametrize("name", ["file/result.txt", "file/deep/result.txt"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/file.* cannot be made or written: .*\ngive another folder"
    ):
        storage.write_text(tmp_path / name, "")


def test_what_goes_wrong_while_writing_is_no_fault_of_the_folder(tmp_path: Path):
    with pytest.raises(OSError, match="No space left") as caught, storage.open_output(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, UserError)


def test_an_unknown_scheme_is_refused_by_every_operation():
    for refuse in (storage.resolve, storage.exists, storage.list_files, storage.read_bytes):
        with pytest.raises(UserError, match=r"^ftp://host/data begins with an unknown scheme\ngive a local"):
            refuse("ftp://host/data")


def test_a_bucket_is_opened_by_its_scheme_in_lower_case(monkeypatch):
    monkeypatch.setattr(storage, "_file_system", lambda root: root)
    assert storage.resolve("S3://Bucket/x") == ("s3://Bucket", "Bucket/x")
