"""Open a data path: find out what it holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from beit.errors import UserError
from pipelines import schemes, storage
from pipelines.sources.base import Source
from pipelines.sources.kinds import FILE_KINDS, SCHEMES
from pipelines.sources.listing import Listing, find_files
from pipelines.storage import Entry

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")

SPLITS = ("train", "validation", "valid", "val", "dev", "test")
"""What the names of shards begin with where a folder holds several splits, as on the Hugging Face hub."""


def open_source(
    path: str,
    *,
    option: str = "data.train",
    split: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Source:
    """Find out what a data path holds.

    Args:
        path: A folder, one file, or a glob (`**` crosses folders); local, s3:// or gs://. Or a path with a
            scheme that `register_scheme` has added.
        option: Name of the option that the path was given with, for messages.
        split: Which shards to read where a folder holds several splits (`train-00000.parquet`, `val-…`).
            None: all of them.
        say: Takes a line for each warning about what was found.

    Raises:
        UserError: Where nothing is there, or nothing that holds images.
    """
    check_data_path(path, option=option)
    opener = SCHEMES.find(scheme) if (scheme := schemes.scheme_of(path)) else None
    source = (
        _of_files(path, option, split)
        if opener is None
        else opener(f"{scheme}://{path.partition('://')[2]}", option, split)
    )
    _check_rows(source, f"{option}={path}")
    for warning in source.warnings:
        say(f"warning: {warning}")
    return source


def check_data_path(path: str, *, option: str) -> None:
    """Refuse a path with a scheme that neither storage nor any source has.

    Raises:
        UserError: Naming the option, and the nearest scheme or all of them.
    """
    scheme = schemes.scheme_of(path)
    if scheme and scheme not in SCHEMES.names:
        error = schemes.unknown_scheme(path, option=option, others=SCHEMES.own)
        raise UserError(
            error.cause, f"{error.remedy}; a scheme of your own is registered first, by {SCHEMES.register}"
        )


def _check_rows(source: Source, named: str) -> None:
    """Refuse a source without images, and one with an empty unit: sources from outside are not trusted to
    look.
    """
    rows, kind = source.manifest.rows, source.manifest.kind
    if not len(rows):
        raise UserError(f"{named} holds no images (its kind of data is {kind})", f"give {_accepted()}")
    if (rows < 1).any():
        empty = int(np.flatnonzero(rows < 1)[0])
        raise UserError(
            f"{named} has {rows[empty]} images in its unit {empty} (its kind of data is {kind})",
            "let what opens this kind of data leave out empty units",
        )


def _of_files(path: str, option: str, split: str | None) -> Source:
    """Open the files that a path names, which must be of one kind."""
    try:
        listing = find_files(path, option=option)
    except OSError as error:
        raise UserError(
            f"{option}={path} cannot be listed: {error}",
            "check the permissions, or the credentials of the bucket",
        ) from error
    files: dict[str, list[Entry]] = {}
    kinds = {}
    for entry in listing.entries:
        ending = entry.name.rpartition(".")[2].lower() if "." in entry.name else ""
        if ending in FILE_KINDS.names:
            kind = FILE_KINDS.find(ending)
            kinds[kind.name] = kind
            files.setdefault(kind.name, []).append(entry)
    if not files:
        raise _no_images(path, listing, option)
    if len(files) > 1:
        counts = " and ".join(
            f"{len(entries):,} {name} file{'s' * (len(entries) > 1)}" for name, entries in files.items()
        )
        example = next(iter(files.values()))[0].name.rpartition(".")[2]
        raise UserError(
            f"{option}={path} holds {counts}: which are the data?",
            f"name one kind by a glob, for example {storage.join(path, '**')}/*.{example}",
        )
    [(name, entries)] = files.items()
    entries, left_out = _of_split(entries, split)
    manifest, summary, warnings = kinds[name].open(Listing(listing.root, entries), option)
    size = sum(entry.size for entry in entries)
    return Source(
        uri=path, manifest=manifest, total_bytes=size, summary=summary, warnings=(*left_out, *warnings)
    )


def _of_split(entries: list[Entry], split: str | None) -> tuple[list[Entry], tuple[str, ...]]:
    """Choose the shards of one split if there are several, and return a line about the others."""
    splits: dict[str, list[Entry]] = {}
    for entry in entries:
        splits.setdefault(re.split(r"[-_.]", entry.name.rpartition("/")[2])[0].lower(), []).append(entry)
    if split not in splits or len(splits) == 1 or not set(splits) <= set(SPLITS):
        return entries, ()
    others = ", ".join(f"{name} ({len(files)})" for name, files in splits.items() if name != split)
    return splits[split], (
        f"only the {len(splits[split])} {split} files are read; there are other splits beside them: {others}",
    )


def _no_images(path: str, listing: Listing, option: str) -> UserError:
    names = [entry.name for entry in listing.entries]
    if packed := next((name for name in names if name.lower().endswith(_COMPRESSED)), None):
        return UserError(
            f"{option}={path}: {packed} is compressed, so its members cannot be read on their own",
            "unpack it (gunzip, unzip) and give that",
        )
    if not names:
        return UserError(f"{option}={path} is an empty folder", f"give {_accepted()}")
    endings = Counter(
        "." + name.rpartition(".")[2] if "." in name.rpartition("/")[2] else "no ending" for name in names
    )
    held = ", ".join(f"{count:,} with {ending}" for ending, count in endings.most_common(4))
    return UserError(
        f"{option}={path} holds no images, but {len(names):,} other files: {held}", f"give {_accepted()}"
    )


def _accepted() -> str:
    """Name the data that a path may hold, those of kinds from outside too."""
    own: dict[str, list[str]] = {}
    for ending, kind in FILE_KINDS.own.items():
        own.setdefault(kind.name, []).append(f".{ending}")
    kinds = [
        "Parquet shards (.parquet)",
        "image files (.jpg, .png, .webp, …)",
        "tars (.tar)",
        *(f"{name} files ({', '.join(endings)})" for name, endings in own.items()),
        *(f"{scheme}://…" for scheme in SCHEMES.own),
    ]
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
