"""Tars, WebDataset shards and tars of tars. A unit is a run of images that lie side by side in one file.

The headers are read once. From then on an image is a range of bytes. Nothing is ever unpacked to disk, so a
name in a tar can do no harm, even if it is absolute or contains `..`. A link to another member is an image of
its own folder, with the content of that member; its name is then the member's.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError
from beit.images.decode import MAX_ENCODED_BYTES
from pipelines import storage
from pipelines.sources.base import (
    PATH_COLUMN,
    ChosenColumns,
    Columns,
    Manifest,
    Rows,
    Unit,
    bytes_column,
    classes_of_folders,
    flag_beside,
    listing_digest,
)
from pipelines.sources.cache import cached
from pipelines.sources.endings import IMAGE_ENDINGS
from pipelines.sources.keys import images_with_ending, keys_with_several_images, one_image_a_key
from pipelines.sources.listing import Listing
from pipelines.sources.passed_over import HIDDEN, added, by_ending, describe, ending_of, hidden_part
from pipelines.sources.splits import splits_of

ROWS_PER_UNIT = 256

# Ranges this close are fetched in one read: on an object store a request costs as much as half a megabyte.
_JOINED_GAP = 512 << 10
_JOINED_MOST = 64 << 20

_BLOCK = tarfile.BLOCKSIZE

# Photographs by chance called like members of a sample are read; a shard with several images a key is not.
_DOUBTFUL_SHARE = 0.01


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


def open_tars(
    listing: Listing, *, option: str, columns: ChosenColumns | None = None
) -> tuple[TarManifest, str, tuple[str, ...]]:
    """The manifest of tars, what was found, and warnings.

    Args:
        listing: The tars.
        option: How they were named, for messages.
        columns: `image` is what the names of the images end in, from their first dot on: jpg, or left.png.

    Raises:
        UserError: For a file that is no readable tar, tars without images, or several images a key.
    """
    columns = columns or ChosenColumns()
    for what, name in columns.given.items():
        if what != "image" and name != what:
            raise UserError(
                f"{flag_beside(option, what)} {name} names a column of Parquet shards, and {listing.root} "
                "holds tars",
                "leave it out",
            )
    image = None if columns.image in (None, "image") else columns.image.lower().removeprefix(".")
    kind = "tar" if image is None else f"tar {image}"
    arrays = cached(kind, listing, lambda: _index_all(listing, option, image))
    counts, passed_over = arrays["counts"], json.loads(str(arrays["passed_over"]))
    if not counts.sum():
        besides = describe(passed_over)
        raise UserError(
            f"{option}: the tars under {listing.root} hold no images" + (f"; {besides}" if besides else ""),
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
        passed_over=passed_over,
        digest=listing_digest(kind, listing.entries, rows),
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
    summary = f"{manifest.total:,} images in {len(listing.entries):,} tars"
    return manifest, summary, tuple(json.loads(str(arrays["warnings"])))


@dataclass(eq=False)
class _Index:
    """What the headers of one archive say about its images."""

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """Path without its endings, by which WebDataset ties the files of a sample together."""
    endings: list[str] = field(default_factory=list)
    """All that follows the first dot of the name, in lower case: jpg, or seg.png."""
    classes: dict[str, int] = field(default_factory=dict)
    """Key -> content of its .cls member."""
    passed_over: Counter[str] = field(default_factory=Counter)
    doubtful: list[tuple[str, str]] = field(default_factory=list)
    """Two images of each key that has several."""

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all images but these."""
        for column in (self.offsets, self.sizes, self.keys, self.endings):
            column[:] = [column[row] for row in rows]  # type: ignore[misc]


def _index_all(listing: Listing, option: str, image: str | None) -> dict[str, NDArray[Any]]:
    """Read the headers of all tars, several at a time."""
    with ThreadPoolExecutor(8) as threads:
        tars = list(
            threads.map(lambda entry: _index(listing.uri(entry.name), option, image), listing.entries)
        )
    indices = [index for tar in tars for index in tar]
    folders: dict[str, int] = {}
    told = any(index.classes for index in indices)
    labels = [
        [index.classes.get(key, -1) for key in index.keys]
        if told
        else [folders.setdefault(key.rpartition("/")[0], len(folders)) for key in index.keys]
        for index in indices
    ]
    label, class_names, warnings = _joined(labels, np.int32), None, []
    if not told:
        of_folder, class_names = classes_of_folders(list(folders))
        label = np.array(of_folder, np.int32)[label]
        if found := splits_of([folder.split("/") for folder in folders]):
            warnings.append(
                f"the tars hold the splits {' and '.join(found)} as folders, and all of them are read: give "
                "tars of one split"
            )
    for entry, tar in zip(listing.entries, tars, strict=True):
        if doubtful := [names for index in tar for names in index.doubtful]:
            warnings.append(
                f"{listing.uri(entry.name)} has several images for {_keys(len(doubtful))}, such as "
                f"{' and '.join(doubtful[0])}: all of them are read"
            )
    return {
        "offsets": _joined([index.offsets for index in indices], np.int64),
        "sizes": _joined([index.sizes for index in indices], np.int64),
        "labels": label,
        "counts": np.array([sum(len(index.keys) for index in tar) for tar in tars], np.int64),
        "class_names": np.array(json.dumps(class_names)),
        "passed_over": np.array(json.dumps(added(*(index.passed_over for index in indices)))),
        "warnings": np.array(json.dumps(warnings)),
    }


def _joined(lists: Sequence[Sequence[int]], kind: type[np.signedinteger[Any]]) -> NDArray[Any]:
    return np.concatenate([np.array(numbers, kind) for numbers in lists])


def _index(uri: str, option: str, image: str | None) -> list[_Index]:
    """Read the headers of one file: of an archive, or of several that were joined."""
    found: list[_Index] = []

    def begin() -> _Index:
        found.append(_Index())
        return found[-1]

    try:
        if storage.is_remote(uri):
            with storage.open_input(uri) as remote, io.BufferedReader(remote, 1 << 20) as file:
                _scan(cast(IO[bytes], file), 0, "", begin)
        else:
            with open(storage.resolve(uri)[1], "rb") as local:
                _scan(local, 0, "", begin)
    except tarfile.TarError as error:
        raise UserError(
            f"{option}: {uri} is not a readable, uncompressed tar ({error})",
            "download it again, decompress it, or leave it out with a glob",
        ) from error
    for index in found:
        _choose_images(index, uri, option, image)
    return found


def _choose_images(index: _Index, uri: str, option: str, image: str | None) -> None:
    """Keep one image a key: that with the ending that the user asks for, or the one that is called so.

    Raises:
        UserError: Where many keys have several images and nothing says which is the one.
    """
    if image is not None:
        kept, others = images_with_ending(index.endings, image)
    elif len(set(index.keys)) < len(index.keys):
        kept, others = one_image_a_key(index.keys, index.endings)
    else:
        return
    if others:
        index.keep(kept)
        index.passed_over.update(
            {f"further image of a key (.{ending})": count for ending, count in others.items()}
        )
    index.doubtful = keys_with_several_images(index.keys, index.endings)
    if len(index.doubtful) > _DOUBTFUL_SHARE * len(set(index.keys)):
        one, other = index.doubtful[0]
        raise UserError(
            f"{option}: {uri} has several images for {_keys(len(index.doubtful))}, such as {one} and "
            f"{other}: which of them is the image?",
            f"choose by {flag_beside(option, 'image')} "
            f"{one.rpartition('/')[2].partition('.')[2]}, the end of its name",
        )


def _keys(count: int) -> str:
    return f"{count:,} {'key' if count == 1 else 'keys'}"


def _scan(file: IO[bytes], base: int, prefix: str, begin: Callable[[], _Index]) -> None:
    """Enter the images of the archives in a file, which itself begins at byte `base` of the tar on disk."""
    start: int | None = 0
    while start is not None:
        index = begin()
        end = _scan_archive(file, start, base, prefix, index)
        start = _next_archive(file, end, index)


def _next_archive(file: IO[bytes], end: int, index: _Index) -> int | None:
    """Return where another archive begins behind the end mark of one, as `cat a.tar b.tar` leaves it; None
    if there is none.

    Raises:
        tarfile.ReadError: If there is no end mark, but something that is no header.
    """
    file.seek(end)
    block = file.read(_BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"what stands at byte {end:,} is no header of a member")
    while block:
        if rest := block.lstrip(b"\0"):
            place = file.tell() - len(rest)
            place -= (place - end) % _BLOCK
            file.seek(place)
            try:
                tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "replace")
            except tarfile.HeaderError:
                index.passed_over["something behind the end mark of a tar"] += 1
                return None
            return place
        block = file.read(1 << 16)
    return None


@dataclass(frozen=True)
class _Link:
    """A member that is a link."""

    name: str
    target: str | None
    """Path of the target within the archive. None: it lies elsewhere."""
    row: int | None
    """Its image in the index, which has no place yet. None: it is no image."""
    key: str | None
    """Its key, where it is a .cls member."""


def _scan_archive(file: IO[bytes], start: int, base: int, prefix: str, index: _Index) -> int:
    """Enter the images of the archive that begins at byte `start` of a file; a tar inside counts as a folder
    of its name. Returns where the archive ends.
    """
    links: list[_Link] = []
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            # Otherwise the object keeps every header it has seen.
            cast(Any, tar).members.clear()
            path = member.name.removeprefix("./")
            folder, _, name = path.rpartition("/")
            regular = member.isreg() and not member.issparse()
            link = not regular and (member.islnk() or member.issym())
            if not regular and not link:
                if not member.isdir():
                    index.passed_over["sparse file in a tar" if member.issparse() else storage.NO_FILE] += 1
                continue
            hidden = path.startswith(("_", ".")) or "/_" in path or "/." in path  # A quick look first.
            if hidden and hidden_part(path, IMAGE_ENDINGS) is not None:
                index.passed_over[HIDDEN] += 1
                continue
            stem, _, ending = name.partition(".")
            ending = ending.lower()
            last = ending.rpartition(".")[2]
            inside = f"{prefix}{folder}/" if folder else prefix
            image, of_class = last in IMAGE_ENDINGS, ending == "cls" and member.size < 32
            if link:
                links.append(
                    _Link(
                        path,
                        _target(member, folder),
                        len(index.keys) if image else None,
                        inside + stem if of_class else None,
                    )
                )
            if image:
                index.offsets.append(base + member.offset_data)
                index.sizes.append(member.size)
                index.keys.append(inside + stem)
                index.endings.append(ending)
            elif link:
                continue
            elif of_class:
                file.seek(member.offset_data)
                index.classes[inside + stem] = _class(file.read(member.size))
            elif last == "tar":
                inner = tar.extractfile(member)
                assert inner is not None
                _scan(inner, base + member.offset_data, f"{inside}{stem}/", lambda: index)
            else:
                index.passed_over.update(by_ending({last: 1}))
        end = int(tar.offset)
    if links:
        _follow(links, file, start, base, index)
    return end


def _class(content: bytes) -> int:
    """Read the content of a .cls member; -1 if it is no class."""
    return int(content) if content.strip().isdigit() else -1


def _target(member: tarfile.TarInfo, folder: str) -> str | None:
    """Return what a link points to, as a path within the archive. A symbolic link begins at its folder."""
    if member.issym() and member.linkname.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(folder if member.issym() else "", member.linkname))
    return None if path == ".." or path.startswith("../") else path


def _follow(links: Sequence[_Link], file: IO[bytes], start: int, base: int, index: _Index) -> None:
    """Give the images that are links the places of the members that they point to. Those that point to none
    are passed over.
    """
    by_name = {posixpath.normpath(link.name): link.target for link in links}
    ends = {link: _end(link.target, by_name) for link in links}
    places, folders = _places(file, start, {end for end in ends.values() if end is not None})
    lost = set()
    for link, end in ends.items():
        place = None if end is None else places.get(end)
        if link.row is not None and place is not None:
            index.offsets[link.row], index.sizes[link.row] = base + place[0], place[1]
        elif link.key is not None and place is not None and place[1] < 32:
            file.seek(place[0])
            index.classes[link.key] = _class(file.read(place[1]))
        else:
            if link.row is not None:
                lost.add(link.row)
            ending = ending_of(link.name)
            if end in folders:
                index.passed_over["link to a folder in a tar"] += 1
            elif place is None:
                index.passed_over["link that leads out of its tar"] += 1
            else:
                index.passed_over.update(by_ending({ending: 1}))
    if lost:
        index.keep([row for row in range(len(index.keys)) if row not in lost])


def _end(target: str | None, links: Mapping[str, str | None]) -> str | None:
    """Follow links to links; None where they lead in a circle or elsewhere."""
    seen = set()
    while target is not None and target in links and target not in seen:
        seen.add(target)
        target = links[target]
    return None if target in seen else target


def _places(file: IO[bytes], start: int, wanted: set[str]) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Look for members by their paths.

    Returns:
        Offset and size of the files among them, and the paths that are folders.
    """
    places: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            cast(Any, tar).members.clear()
            path = posixpath.normpath(member.name)
            if member.isreg() and not member.issparse() and path in wanted:
                places[path] = member.offset_data, member.size
            folder = path if member.isdir() else path.rpartition("/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition("/")[0]
    return places, folders & wanted
