"""The kinds of data that a path can hold: Parquet shards, tars, image files, and kinds of your own.

A kind of files is known by their endings:

    register_files(FileKind(name="numpy", endings=("npz",), open=open_npz))    # --data.train FOLDER_OF_NPZ

Data that are not files have a scheme of their own, in lower or upper case:

    register_scheme("table", open_table)                                       # --data.train table://photos

Both functions give a manifest. Its units are pickled, and read in Ray's tasks (see
`pipelines/sources/base.py`). The trials of a sweep know the kinds that the driver has registered. A program
whose modules Ray's workers cannot import calls `ray.cloudpickle.register_pickle_by_value(module)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from beit.registry import Registry
from pipelines import storage
from pipelines.schemes import STORAGE_SCHEMES, scheme_of
from pipelines.sources.base import ChosenColumns, Manifest, Source
from pipelines.sources.endings import IMAGE_ENDINGS
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

    open_columns: Callable[[Listing, str, ChosenColumns], Opened] | None = None
    """The same with columns that the user names. None: these files have no columns to choose."""


OpenScheme = Callable[[str, str, str | None], Source]
"""(path, the option that named it, the split that is wanted) -> the data. Raises UserError for what
is wrong."""


def register_files(kind: FileKind) -> None:
    """Add a kind of files. An ending that is known already means the new kind from now on."""
    for ending in kind.endings:
        FILE_KINDS.add(ending, kind)


def register_scheme(scheme: str, open: OpenScheme) -> None:
    """Add the data behind paths that begin with `scheme://`, in either case. What `open` is given has the
    scheme in lower case.
    """
    SCHEMES.add(scheme.lower(), open)


_FILES = (
    FileKind(
        name="Parquet",
        endings=("parquet", "pq"),
        open=lambda listing, option: open_parquet(listing, option=option),
        open_columns=lambda listing, option, columns: open_parquet(listing, option=option, columns=columns),
    ),
    FileKind(
        name="tar",
        endings=("tar",),
        open=lambda listing, option: open_tars(listing, option=option),
        open_columns=lambda listing, option, columns: open_tars(listing, option=option, columns=columns),
    ),
    FileKind(
        name="image",
        endings=tuple(sorted(IMAGE_ENDINGS)),
        open=lambda listing, option: open_folder(listing),
    ),
)

FILE_KINDS: Registry[FileKind] = Registry(
    "ending",
    {ending: kind for kind in _FILES for ending in kind.endings},
    register="pipelines.sources.register_files",
    replaceable=True,
)
"""Kinds of files by ending."""

SCHEMES: Registry[OpenScheme | None] = Registry(
    "scheme", dict.fromkeys(("file", *STORAGE_SCHEMES)), register="pipelines.sources.register_scheme"
)
"""What opens the data behind a scheme. None: they are files, which are opened by their kind."""


def is_own(path: str | None) -> bool:
    """Whether only a program that has registered a scheme or a kind of files can open a data path."""
    if path is None:
        return False
    if scheme_of(path) in SCHEMES.own or not FILE_KINDS.own:
        return scheme_of(path) in SCHEMES.own
    names = [path, *(storage.list_folder(path) if storage.is_folder(path) else ())]
    return any(name.lower().endswith(tuple(f".{ending}" for ending in FILE_KINDS.own)) for name in names)
