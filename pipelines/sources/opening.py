"""Open a data path: find out what it holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from beit.errors import UserError
from pipelines import schemes, storage
from pipelines.sources.base import ChosenColumns, Manifest, Source, flag_beside
from pipelines.sources.content import how_to_fetch, look_alikes, without_pointers
from pipelines.sources.endings import NO_IMAGE_ENDINGS, UNREAD_IMAGE_ENDINGS
from pipelines.sources.folder import FolderManifest
from pipelines.sources.kinds import FILE_KINDS, SCHEMES, FileKind
from pipelines.sources.listing import Listing, find_files
from pipelines.sources.lists import read_list
from pipelines.sources.passed_over import NO_ENDING, PassedOver, added, by_ending, describe, ending_of
from pipelines.sources.splits import by_split, counted, wanted
from pipelines.storage import Entry

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")

_ENDINGS_LOOKED_AT = 16

LIST_OF = {"data.val": "val-list"}
"""The option that gives a list for the images of an option, if it is not called list."""


def open_source(
    path: str,
    *,
    option: str = "data.train",
    split: str | None = None,
    columns: ChosenColumns | None = None,
    chosen: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Source:
    """Find out what a data path holds.

    Args:
        path: A folder, one file, or a glob (`**` crosses folders); local, s3:// or gs://. Or a path with a
            scheme that `register_scheme` has added.
        option: Name of the option that the path was given with, for messages.
        split: Which shards to read where a folder holds several splits (`train-00000.parquet`, `val-…`).
            None: all of them.
        columns: Columns of Parquet shards that the user names.
        chosen: File with a list of the images to take of a folder; see `pipelines/sources/lists.py`. Splits
            are then of no account.
        say: Takes a line for each warning about what was found, and one about what was passed over.

    Raises:
        UserError: Where nothing is there, or nothing that holds images.
    """
    check_data_path(path, option=option)
    opener = SCHEMES.find(scheme) if (scheme := schemes.scheme_of(path)) else None
    columns = columns or ChosenColumns()
    source = (
        _of_files(path, option, split, columns, chosen)
        if opener is None
        else opener(f"{scheme}://{path.partition('://')[2]}", option, split)
    )
    if opener is not None:
        _check_columns(source.manifest, columns, f"{option}={path}", option)
        if chosen is not None:
            _check_is_folder(source.manifest, chosen, f"{option}={path}", option)
    _check_rows(source, f"{option}={path}")
    for warning in source.warnings:
        say(f"warning: {warning}")
    if line := describe(source.manifest.passed_over):
        say(f"{option}: {line}")
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


def _of_files(
    path: str, option: str, split: str | None, columns: ChosenColumns, chosen: str | None
) -> Source:
    """Open the files that a path names, which must be of one kind."""
    images = None
    if chosen is not None:
        list_option = flag_beside(option, LIST_OF.get(option, "list")).removeprefix("--").replace("-", "_")
        images = read_list(chosen, option=list_option)
    try:
        listing = find_files(path, option=option)
        listing = listing if images is None else images.choose(listing, path)
    except OSError as error:
        raise UserError(
            f"{option}={path} cannot be listed: {error}",
            "check the permissions, or the credentials of the bucket",
        ) from error
    kinds: dict[str, FileKind | None] = {}  # by ending
    files: dict[str, list[Entry]] = {}  # by the name of the kind
    others: dict[str, list[Entry]] = {}  # by ending
    for entry in listing.entries:
        ending = ending_of(entry.name)
        if ending not in kinds:
            kinds[ending] = FILE_KINDS.find(ending) if ending in FILE_KINDS.names else None
        if (kind := kinds[ending]) is None:
            others.setdefault(ending, []).append(entry)
        else:
            files.setdefault(kind.name, []).append(entry)
    passed_over = added(
        listing.passed_over, by_ending({ending: len(found) for ending, found in others.items()})
    )
    if not files:
        raise _no_images(path, listing, others, passed_over, option)
    if len(files) > 1:
        counts = " and ".join(
            f"{len(entries):,} {name} file{'s' * (len(entries) > 1)}" for name, entries in files.items()
        )
        example = next(iter(files.values()))[0].name.rpartition(".")[2]
        raise UserError(
            f"{option}={path} holds {counts}: which are the data?",
            f"name one kind by a glob, for example {storage.join(path, '**', f'*.{example}')}",
        )
    [entries] = files.values()
    entries, of_splits = (entries, ()) if images is not None else _of_split(entries, split, path, option)
    entries, pointers = without_pointers(listing, entries)
    if not entries:
        raise _no_images(path, listing, others, added(passed_over, pointers), option)
    kind = kinds[ending_of(entries[0].name)]
    assert kind is not None
    found = Listing(listing.root, entries)
    if kind.open_columns is not None:
        manifest, summary, warnings = kind.open_columns(found, option, columns)
    else:
        manifest, summary, warnings = kind.open(found, option)
        _check_columns(manifest, columns, f"{option}={path}", option)
    if images is not None:
        manifest = images.label(_check_is_folder(manifest, chosen, f"{option}={path}", option))
    if passed_over or pointers:
        manifest = replace(manifest, passed_over=added(passed_over, pointers, manifest.passed_over))
    return Source(
        uri=path,
        manifest=manifest,
        total_bytes=sum(entry.size for entry in entries),
        summary=summary,
        warnings=(*of_splits, *_images_among(listing, others), *warnings),
    )


def _check_columns(manifest: Manifest, columns: ChosenColumns, named: str, option: str) -> None:
    """Refuse columns that are named for data without columns of their own."""
    for what, name in columns.given.items():
        if name != what or name not in manifest.columns:
            raise UserError(
                f"{flag_beside(option, what)} {name} names a column of Parquet shards, and {named} holds "
                f"{manifest.kind}",
                "leave it out",
            )


def _check_is_folder(manifest: Manifest, chosen: str | None, named: str, option: str) -> FolderManifest:
    """Refuse a list for anything but a folder of image files."""
    if isinstance(manifest, FolderManifest):
        return manifest
    raise UserError(
        f"{flag_beside(option, LIST_OF.get(option, 'list'))} {chosen} goes with a folder of image files, and "
        f"{named} holds {manifest.kind}",
        "leave it out, or unpack the images",
    )


def _of_split(
    entries: list[Entry], split: str | None, path: str, option: str
) -> tuple[list[Entry], tuple[str, ...]]:
    """Choose the files of one split if there are several, and return a line about the others.

    Raises:
        UserError: If the split is not among them.
    """
    called, of_folders = by_split([entry.name for entry in entries])
    if len(set(called)) < 2:
        return entries, ()
    chosen = wanted(split, called)
    if chosen is None:
        how = "its folder" if of_folders else "its files by a glob"
        return entries, (f"all splits are read: {counted(called)}; to read one of them, give {how}",)
    if not chosen:
        first = next(i for i, name in enumerate(called) if name)
        parts = entries[first].name.split("/")
        place = parts[: parts.index(called[first]) + 1] if of_folders else ["**", f"{called[first]}*"]
        raise UserError(
            f"{option}={path} holds splits, but none that is called {split}: {counted(called)}",
            f"name the one that is meant, for example {storage.join(path, *place)}",
        )
    left = [name for name in called if name not in chosen]
    kept = [entry for entry, name in zip(entries, called, strict=True) if name in chosen]
    return kept, (
        f"only the {len(kept):,} {split} files are read; there are other splits beside them: {counted(left)}",
    )


def _images_among(listing: Listing, others: Mapping[str, list[Entry]]) -> list[str]:
    """Say which of the files that are passed over are images all the same: of formats that are not decoded,
    or without an image's ending.
    """
    lines = []
    if unread := sorted(ending for ending in others if ending in UNREAD_IMAGE_ENDINGS):
        count = sum(len(others[ending]) for ending in unread)
        lines.append(
            f"{_counted(count, 'image')} of formats that are not decoded "
            f"({', '.join(f'.{ending}' for ending in unread)}): convert to JPEG or PNG"
        )
    unknown = [ending for ending in others if ending not in UNREAD_IMAGE_ENDINGS | NO_IMAGE_ENDINGS]
    for ending in sorted(unknown, key=lambda ending: -len(others[ending]))[:_ENDINGS_LOOKED_AT]:
        if (found := look_alikes(listing, others[ending])) is None:
            continue
        name, wanted_ending, alike, looked_at = found
        count, every = len(others[ending]), alike == looked_at
        line = (
            f"{_counted(count, 'file')} {f'with the ending .{ending}' if ending else NO_ENDING} "
            f"look{'s' * (count == 1)} like {name} "
            f"({'all' if every else f'{alike} of {looked_at}'} that were looked at): "
            f"rename to end in .{wanted_ending}"
        )
        if every and not ending and not storage.is_remote(listing.root):
            line += (
                f", by find {shlex.quote(listing.root)} -type f ! -name '*.*' "
                f"-exec mv {{}} {{}}.{wanted_ending} \\;"
            )
        lines.append(line)
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _no_images(
    path: str,
    listing: Listing,
    others: Mapping[str, list[Entry]],
    passed_over: PassedOver,
    option: str,
) -> UserError:
    names = [entry.name for entry in listing.entries]
    if packed := next((name for name in names if name.lower().endswith(_COMPRESSED)), None):
        return UserError(
            f"{option}={path}: {packed} is compressed, so its members cannot be read on their own",
            "unpack it (gunzip, unzip) and give that",
        )
    if not passed_over:
        return UserError(f"{option}={path} is an empty folder", f"give {_accepted()}")
    return UserError(
        f"{option}={path} holds no images; {describe(passed_over)}",
        "; ".join([*how_to_fetch(listing, passed_over), *_images_among(listing, others)])
        or f"give {_accepted()}",
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
