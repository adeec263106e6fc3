"""The kinds of data that a path can hold: Parquet shards, tars, image files, and kinds of your own.

A kind of files is known by their endings:

    register_files(FileKind(name="numpy", endings=("npz",), open=open_npz))    # --data.train FOLDER_OF_NPZ

Data that are no files have a scheme of their own:

    register_scheme("table", open_table)                                       # --data.train table://photos

Both return a manifest, whose units are pickled and read in Ray's tasks (see `pipelines/sources/base.py`). A
program whose modules Ray's workers cannot import calls `ray.cloudpickle.register_pickle_by_value(module)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.sources.base import IMAGE_ENDINGS, Manifest, Source
from pipelines.sources.folder import open_folder
from pipelines.sources.listing import Listing
from pipelines.sources.parquet import open_parquet
from pipelines.sources.tars import open_tars

Opened = tuple[Manifest, str, tuple[str, ...]]
"""The manifest, what was found in a phrase with numbers, and warnings with their remedies."""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of files that hold images."""

    name: str
    """In messages: "3 NAME files"."""

    endings: tuple[str, ...]
    """What the names of its files end in, in lower case and without the dot."""

    open: Callable[[Listing, str], Opened]
    """(the files, the option that named them) -> the data in them. Raises UserError for what is wrong."""


OpenScheme = Callable[[str, str, str | None], Source]
"""(path, the option that named it, the split that is wanted) -> the data. Raises UserError for what
is wrong."""


def register_files(kind: FileKind) -> None:
    """Add a kind of files. An ending that is known already means the new kind from now on."""
    for ending in kind.endings:
        FILE_KINDS[ending] = kind


def register_scheme(scheme: str, open: OpenScheme) -> None:
    """Add the data behind paths that begin with `scheme://`."""
    if scheme in ("file", "s3", "gs"):
        raise ValueError(f"{scheme}:// names files; choose another scheme")
    SCHEMES[scheme] = open


FILE_KINDS: dict[str, FileKind] = {}
"""Kinds of files by ending."""

SCHEMES: dict[str, OpenScheme] = {}
"""Kinds of data that are no files, by scheme."""

register_files(
    FileKind(
        name="Parquet",
        endings=("parquet", "pq"),
        open=lambda listing, option: open_parquet(listing, option=option),
    )
)
register_files(
    FileKind(name="tar", endings=("tar",), open=lambda listing, option: open_tars(listing, option=option))
)
register_files(
    FileKind(
        name="image",
        endings=tuple(sorted(IMAGE_ENDINGS)),
        open=lambda listing, option: open_folder(listing),
    )
)
