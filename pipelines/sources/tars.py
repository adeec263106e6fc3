"""Tars, WebDataset shards and tars of tars. A unit is a run of images that lie side by side in one file.

The headers are read once. From then on an image is a range of bytes. Nothing is ever unpacked to disk, so a
name in a tar can do no harm, even if it is absolute or contains `..`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError
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
from pipelines.sources.cache import cached
from pipelines.sources.endings import IMAGE_ENDINGS
from pipelines.sources.listing import Listing

ROWS_PER_UNIT = 256

# Ranges this close are fetched in one read: on an object store a request costs as much as half a megabyte.
_JOINED_GAP = 512 << 10
_JOINED_MOST = 64 << 20

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, eq=False)
class TarUnit(Unit):
    """Images of one tar as ranges of bytes."""

    uri: str
    offsets: NDArray[np.int64]
    """int64 [n]: where each image begins in the file."""
    sizes: NDArray[np.int64]
    """int64 [n], in bytes."""
    labels: NDArray[np.int32]
    """int32 [n]; -1 where there is none."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked ranges, neighbours together."""
        found: Columns = {}
        if "image" in columns or PATH_COLUMN in columns:
            members = self._members(np.asarray(rows))
            found["image"] = bytes_column([member[_BLOCK:] for member in members])
            found[PATH_COLUMN] = np.array([_name(member[:_BLOCK]) for member in members], object)
        if "label" in columns:
            found["label"] = self.labels[rows].astype(np.int64)
        return {column: found[column] for column in columns}

    def describe(self, row: int) -> str:
        """Tar and member; the member's name is read from its header."""
        try:
            with storage.open_input(self.uri) as file:
                return f"{self.uri}: {_name(file.read_at(_BLOCK, int(self.offsets[row]) - _BLOCK))}"
        except OSError:
            return f"{self.uri}, byte {self.offsets[row]}"

    def _members(self, rows: Rows) -> list[bytes]:
        """Header and content of the members."""
        starts, ends = self.offsets - _BLOCK, self.offsets + np.minimum(self.sizes, MAX_ENCODED_BYTES)
        members: list[bytes] = [b""] * len(rows)
        with storage.open_input(self.uri) as file:
            for run in _neighbours(rows, starts, ends):
                first, last = int(starts[rows[run[0]]]), int(ends[rows[run]].max())
                content = file.read_at(last - first, first)
                if len(content) < last - first:
                    raise OSError(
                        f"{self.uri} ends at byte {first + len(content)}, but its index says {last}: it was "
                        "changed since"
                    )
                for place in run:
                    members[place] = content[
                        int(starts[rows[place]]) - first : int(ends[rows[place]]) - first
                    ]
        return members


def _name(header: bytes) -> str:
    """A member's name: its last header lies just before its content."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except tarfile.HeaderError:
        return ""


def _neighbours(rows: Rows, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[list[int]]:
    """Places in `rows`, by offset, in runs that are worth one read each."""
    run: list[int] = []
    for place in np.argsort(starts[rows], kind="stable").tolist():
        row = rows[place]
        if run and (
            starts[row] - ends[rows[run[-1]]] > _JOINED_GAP or ends[row] - starts[rows[run[0]]] > _JOINED_MOST
        ):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


@dataclass(frozen=True, kw_only=True, eq=False)
class TarManifest(Manifest):
    """Byte ranges of all images: 20 bytes for each."""

    kind: ClassVar[str] = "tar"

    root: str
    names: tuple[str, ...]
    file: NDArray[np.int32]
    """int32 [U]: which tar each unit lies in."""
    first: NDArray[np.int64]
    """int64 [U]: number of each unit's first image."""
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]

    def unit(self, index: int) -> TarUnit:
        """A run of images by its number."""
        images = slice(int(self.first[index]), int(self.first[index]) + int(self.rows[index]))
        uri = storage.join(self.root, self.names[self.file[index]])
        return TarUnit(
            uri, self.offsets[images].copy(), self.sizes[images].copy(), self.labels[images].copy()
        )


def open_tars(listing: Listing, *, option: str) -> tuple[TarManifest, str, tuple[str, ...]]:
    """The manifest of tars, what was found, and warnings.

    Raises:
        UserError: For a file that is no readable tar, or tars without images.
    """
    arrays = cached("tar", listing, lambda: _index_all(listing, option))
    counts = arrays["counts"]
    if not counts.sum():
        raise UserError(
            f"{option}: the tars under {listing.root} hold no images",
            "give tars with members such as .jpg or .png",
        )
    parts = -(-counts // ROWS_PER_UNIT)
    file = np.repeat(np.arange(len(counts), dtype=np.int32), parts)
    part = np.arange(len(file)) - np.repeat(np.cumsum(parts) - parts, parts)
    rows = np.minimum(ROWS_PER_UNIT, counts[file] - part * ROWS_PER_UNIT).astype(np.int32)
    class_names = json.loads(str(arrays["class_names"]))
    labelled = bool((arrays["labels"] >= 0).any())
    manifest = TarManifest(
        rows=rows,
        digest=listing_digest("tar", listing.entries, rows),
        columns=("image", PATH_COLUMN, "label") if labelled else ("image", PATH_COLUMN),
        class_names=None if class_names is None else tuple(class_names),
        root=listing.root,
        names=tuple(entry.name for entry in listing.entries),
        file=file,
        first=(np.cumsum(counts) - counts)[file] + part * ROWS_PER_UNIT,
        offsets=arrays["offsets"],
        sizes=arrays["sizes"],
        labels=arrays["labels"],
    )
    return manifest, f"{manifest.total:,} images in {len(listing.entries):,} tars", ()


@dataclass(eq=False)
class _Index:
    """What the headers of one tar say about its images."""

    offsets: list[int]
    sizes: list[int]
    keys: list[str]
    """Path without its endings, by which WebDataset ties the files of a sample together."""
    plain: list[bool]
    """The name has a single ending."""
    classes: dict[str, int]
    """Key -> content of its .cls member."""


def _index_all(listing: Listing, option: str) -> dict[str, NDArray[Any]]:
    """Read the headers of all tars, several at a time."""
    with ThreadPoolExecutor(8) as threads:
        indices = list(threads.map(lambda entry: _index(listing.uri(entry.name), option), listing.entries))
    folders: dict[str, int] = {}
    offsets, sizes, labels, counts = [], [], [], []
    told = any(index.classes for index in indices)
    for index in indices:
        plain = {key for key, single in zip(index.keys, index.plain, strict=True) if single}
        # In a WebDataset shard `7.jpg` is the image and `7.depth.png` a companion; a lone `7.2019.jpg` is an
        # image.
        kept = [i for i, key in enumerate(index.keys) if index.plain[i] or key not in plain]
        offsets.append(np.array(index.offsets, np.int64)[kept])
        sizes.append(np.array(index.sizes, np.int64)[kept])
        keys = [index.keys[i] for i in kept]
        found = (
            [index.classes.get(key, -1) for key in keys]
            if told
            else [folders.setdefault(key.rpartition("/")[0], len(folders)) for key in keys]
        )
        labels.append(np.array(found, np.int32))
        counts.append(len(kept))
    label, class_names = np.concatenate(labels), None
    if not told:
        of_folder, class_names = classes_of_folders(list(folders))
        label = np.array(of_folder, np.int32)[label]
    return {
        "offsets": np.concatenate(offsets),
        "sizes": np.concatenate(sizes),
        "labels": label,
        "counts": np.array(counts, np.int64),
        "class_names": np.array(json.dumps(class_names)),
    }


def _index(uri: str, option: str) -> _Index:
    index = _Index([], [], [], [], {})
    try:
        if storage.is_remote(uri):
            with storage.open_input(uri) as remote, io.BufferedReader(remote, 1 << 20) as file:
                _scan(cast(IO[bytes], file), 0, "", index)
        else:
            with open(storage.resolve(uri)[1], "rb") as local:
                _scan(local, 0, "", index)
    except tarfile.TarError as error:
        raise UserError(
            f"{option}: {uri} is not a readable, uncompressed tar ({error})",
            "download it again, decompress it, or leave it out with a glob",
        ) from error
    return index


def _scan(file: IO[bytes], base: int, prefix: str, index: _Index) -> None:
    """Enter the images of a tar that begins at byte `base`; a tar inside counts as a folder of its name."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            # Otherwise the object keeps every header it has seen.
            cast(Any, tar).members.clear()
            folder, _, name = member.name.rpartition("/")
            if not member.isreg() or member.issparse() or name.startswith("."):
                continue
            stem, _, ending = name.partition(".")
            ending, last = ending.lower(), name.rpartition(".")[2].lower()
            inside = f"{prefix}{folder}/" if folder else prefix
            if last in IMAGE_ENDINGS:
                index.offsets.append(base + member.offset_data)
                index.sizes.append(member.size)
                index.keys.append(inside + stem)
                index.plain.append(ending == last)
            elif ending == "cls" and member.size < 32:
                content = cast(IO[bytes], tar.extractfile(member)).read()
                index.classes[inside + stem] = int(content) if content.strip().isdigit() else -1
            elif last == "tar":
                inner = tar.extractfile(member)
                assert inner is not None
                _scan(inner, base + member.offset_data, f"{inside}{stem}/", index)
