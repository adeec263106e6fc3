"""A folder of image files at any depth. A unit is a slice of the list of files.

The list is sorted by a hash of the path, so that every unit holds images of all class folders.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beit.images.decode import MAX_ENCODED_BYTES
from pipelines import storage
from pipelines.sources.base import (
    PATH_COLUMN,
    Columns,
    Manifest,
    Rows,
    Unit,
    bytes_column,
    classes_of_folders,
    listing_digest,
)
from pipelines.sources.listing import Listing

ROWS_PER_UNIT = 128


@dataclass(frozen=True, eq=False)
class FolderUnit(Unit):
    """Some files of a folder."""

    root: str
    names: bytes
    """Paths below the root, joined by zero bytes, which no path contains."""
    labels: NDArray[np.int32]
    """int32 [n]; -1 where the path names no class."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked files, several at a time."""
        found: Columns = {}
        names = self.names.split(b"\0")
        if PATH_COLUMN in columns:
            found[PATH_COLUMN] = np.array(
                [names[row].decode(errors="backslashreplace") for row in rows], object
            )
        if "image" in columns:
            uris = [storage.join(self.root, os.fsdecode(names[row])) for row in rows]
            with ThreadPoolExecutor(max(1, min(16, len(uris)))) as threads:
                found["image"] = bytes_column(list(threads.map(read_start, uris)))
        if "label" in columns:
            found["label"] = self.labels[rows].astype(np.int64)
        return {column: found[column] for column in columns}

    def describe(self, row: int) -> str:
        """Path of the file."""
        return storage.join(self.root, self.names.split(b"\0")[row].decode(errors="backslashreplace"))


def read_start(uri: str) -> bytes:
    """Read a file, up to `MAX_ENCODED_BYTES`."""
    if not storage.is_remote(uri):
        with open(storage.resolve(uri)[1], "rb") as local:
            return local.read(MAX_ENCODED_BYTES)
    with storage.open_input(uri) as file:
        return bytes(file.read(MAX_ENCODED_BYTES))


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderManifest(Manifest):
    """The ordered list of files: about 45 bytes and its path for each, in one buffer."""

    kind: ClassVar[str] = "folder"

    root: str
    names: pa.LargeBinaryArray
    """Paths below the root, in the order of their hashes."""
    labels: NDArray[np.int32]
    """int32 [images]; -1 where the path names no class."""

    def unit(self, index: int) -> FolderUnit:
        """A slice of the list by its number."""
        start = index * ROWS_PER_UNIT
        names = self.names.slice(start, ROWS_PER_UNIT).to_pylist()
        return FolderUnit(self.root, b"\0".join(names), self.labels[start : start + ROWS_PER_UNIT].copy())


def open_folder(listing: Listing) -> tuple[FolderManifest, str, tuple[str, ...]]:
    """Return the manifest of image files, a summary, and warnings."""
    encoded = [os.fsencode(entry.name) for entry in listing.entries]
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in encoded],
        np.uint64,
    )
    order = np.argsort(hashes, kind="stable")
    folders: dict[str, int] = {}
    folder = np.array(
        [folders.setdefault(entry.name.rpartition("/")[0], len(folders)) for entry in listing.entries],
        np.int32,
    )
    of_folder, class_names = classes_of_folders(list(folders))
    count = len(encoded)
    rows = np.full(-(-count // ROWS_PER_UNIT), ROWS_PER_UNIT, np.int32)
    rows[-1] = count - ROWS_PER_UNIT * (len(rows) - 1)
    manifest = FolderManifest(
        rows=rows,
        digest=listing_digest("folder", listing.entries, rows),
        columns=("image", PATH_COLUMN) if class_names is None else ("image", PATH_COLUMN, "label"),
        class_names=class_names,
        root=listing.root,
        names=pa.array((encoded[i] for i in order), pa.large_binary(), size=count),
        labels=np.array(of_folder, np.int32)[folder][order],
    )
    classes = "" if class_names is None else f" of {len(class_names):,} classes"
    return manifest, f"{count:,} image files{classes} in {len(folders):,} folders", ()
