"""Kinds of data that are registered: how a path chooses one, and what is refused."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from beit.errors import UserError
from pipelines import storage
from pipelines.sources import FileKind, Manifest, Source, open_source, register_files, register_scheme
from pipelines.sources.kinds import FILE_KINDS, SCHEMES

STORAGE = "s3://, gs://, gcs://, abfs://, abfss://, hf://"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Kinds that a test registers are forgotten after it, and it sees no kinds of other tests."""
    for registry in (FILE_KINDS, SCHEMES):
        monkeypatch.setattr(registry, "_choices", dict(registry._built_in))


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts(Manifest):
    """Units that are never read."""

    kind: ClassVar[str] = "counts"

    def unit(self, index):
        raise NotImplementedError


def counts(rows) -> Counts:
    return Counts(rows=np.array(rows, np.int32), digest="-", columns=("image",), class_names=None)


def open_counts(path, option, split):
    """counts://3,4: a unit of 3 rows and one of 4."""
    numbers = path.removeprefix("counts://")
    rows = [int(number) for number in numbers.split(",") if number]
    return Source(uri=path, manifest=counts(rows), total_bytes=0, summary="counts")


@pytest.mark.parametrize("scheme", ["counts", "Counts", "COUNTS"])
@pytest.mark.parametrize("path", ["counts://3,4", "Counts://3,4", "COUNTS://3,4"])
def test_a_scheme_is_registered_and_chosen_in_either_case(scheme, path):
    register_scheme(scheme, open_counts)
    assert open_source(path).manifest.rows.tolist() == [3, 4]


@pytest.mark.parametrize("scheme", ["file", "s3", "S3", "gs", "hf"])
def test_a_scheme_of_storage_cannot_be_taken(scheme):
    with pytest.raises(ValueError, match=f"scheme={scheme.lower()} is built in"):
        register_scheme(scheme, open_counts)


def test_a_data_path_with_an_unknown_scheme_is_refused_with_its_option_and_all_that_are_known():
    register_scheme("counts", open_counts)
    known = f"give a local path, or one that begins with {STORAGE}, counts://"
    how = "; a scheme of your own is registered first, by pipelines.sources.register_scheme"
    for path, hint in (
        ("nowhere://3", ""),
        ("count://3", "perhaps you meant counts://3; "),
        ("s4://bucket/x", "perhaps you meant s3://bucket/x; "),
    ):
        with pytest.raises(UserError) as refused:
            open_source(path, option="data.val")
        assert refused.value.cause == f"data.val={path} begins with an unknown scheme"
        assert refused.value.remedy == hint + known + how


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("counts://", "knn.train=counts:// holds no images (its kind of data is counts)"),
        (
            "counts://3,0,4",
            "knn.train=counts://3,0,4 has 0 images in its unit 1 (its kind of data is counts)",
        ),
    ],
)
def test_a_source_without_images_or_with_an_empty_unit_is_refused(path, cause):
    register_scheme("counts", open_counts)
    with pytest.raises(UserError) as refused:
        open_source(path, option="knn.train")
    assert refused.value.cause == cause


def test_files_without_images_are_refused_whoever_opens_them(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    register_files(FileKind(name="array", endings=("npz",), open=lambda *_: (counts([]), "none", ())))
    with pytest.raises(UserError) as refused:
        open_source(str(tmp_path))
    assert refused.value.cause == f"data.train={tmp_path} holds no images (its kind of data is counts)"


def test_what_a_path_may_hold_is_said_with_what_is_registered(tmp_path):
    built_in = "Parquet shards (.parquet), image files (.jpg, .png, .webp, …)"
    with pytest.raises(UserError, match=re.escape(f"give {built_in} or tars (.tar)")):
        open_source(str(tmp_path))
    register_files(FileKind(name="array", endings=("npz", "npy"), open=lambda *_: (counts([1]), "", ())))
    register_scheme("counts", open_counts)
    with pytest.raises(
        UserError, match=re.escape(f"give {built_in}, tars (.tar), array files (.npz, .npy) or counts://…")
    ):
        open_source(str(tmp_path))


def test_a_known_ending_can_be_given_another_meaning(tmp_path):
    (tmp_path / "a.TIF").write_bytes(b"")
    register_files(FileKind(name="stack", endings=("tif",), open=lambda *_: (counts([9]), "a stack", ())))
    assert open_source(str(tmp_path)).manifest.total == 9
    assert list(FILE_KINDS.own) == ["tif"]


def test_data_that_are_no_files_keep_their_path_and_hold_no_folder():
    register_scheme("counts", open_counts)
    assert open_source(storage.absolute("Counts://3")).manifest.total == 3
    assert storage.absolute("counts://") == "counts://"
    assert not storage.lies_in("/features", "counts://3")
