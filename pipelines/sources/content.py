"""What a file is by its first bytes: an image without an image's name, or a pointer in place of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines import storage
from pipelines.sources.listing import Listing
from pipelines.storage import Entry

_FORMATS = (
    (b"\xff\xd8\xff", "JPEG", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "PNG", "png"),
    (b"GIF8", "GIF", "gif"),
    (b"II*\0", "TIFF", "tif"),
    (b"MM\0*", "TIFF", "tif"),
)
"""First bytes, format, and the ending by which it is read."""

_LFS = "Git LFS pointer (`git lfs pull` brings the data)"
_ANNEX = "git-annex pointer (`git annex get` brings the data)"
_POINTERS = ((b"version https://git-lfs.github.com/spec/", _LFS), (b"/annex/objects/", _ANNEX))
_POINTER_BYTES = range(50, 512)
"""Sizes of pointers. An image is rarely as small."""

_HEAD_BYTES = 64
_LOOKED_AT = 32


def format_of(head: bytes) -> tuple[str, str] | None:
    """Return the format of an image, and the ending that goes with it, by its first bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP", "webp"
    return next((found[1:] for found in _FORMATS if head.startswith(found[0])), None)


def look_alikes(listing: Listing, entries: Sequence[Entry]) -> tuple[str, str, int, int] | None:
    """Look into some files: are they images?

    Returns:
        The most frequent format, its ending, how many have it and how many were looked at; None if no file
        is an image.
    """
    sample = _spread(entries)
    found = Counter(filter(None, map(format_of, _heads(listing, sample))))
    if not found:
        return None
    [((name, ending), count)] = found.most_common(1)
    return name, ending, count, len(sample)


def without_pointers(listing: Listing, entries: list[Entry]) -> tuple[list[Entry], Counter[str]]:
    """Leave out the files that only say where Git LFS or git-annex keeps the data.

    If none among a sample of the small files is a pointer, no more are looked at.

    Returns:
        The other files, and how many were left out for each reason.
    """
    small = [entry for entry in entries if entry.size in _POINTER_BYTES]
    if not any(map(_pointer, _heads(listing, _spread(small)))):
        return entries, Counter()
    reasons = {
        entry.name: reason
        for entry, head in zip(small, _heads(listing, small), strict=True)
        if (reason := _pointer(head)) is not None
    }
    return [entry for entry in entries if entry.name not in reasons], Counter(reasons.values())


def how_to_fetch(listing: Listing, reasons: Iterable[str]) -> list[str]:
    """Return what to do about data that were never fetched, by the reasons why entries were passed over."""
    commands = {_LFS: "git lfs pull", _ANNEX: "git annex get .", storage.ANNEXED: "git annex get ."}
    there = dict.fromkeys(commands[reason] for reason in reasons if reason in commands)
    return [f"fetch the data: run `{command}` in {listing.root}" for command in there]


def _pointer(head: bytes) -> str | None:
    return next((reason for start, reason in _POINTERS if head.startswith(start)), None)


def _spread(entries: Sequence[Entry]) -> list[Entry]:
    """Take some entries of a list, evenly."""
    count = min(_LOOKED_AT, len(entries))
    return [entries[i * len(entries) // count] for i in range(count)]


def _heads(listing: Listing, entries: Iterable[Entry]) -> list[bytes]:
    """Read the first bytes of files; none of those that cannot be read."""

    def head(entry: Entry) -> bytes:
        try:
            with storage.open_input(listing.uri(entry.name)) as file:
                return bytes(file.read(_HEAD_BYTES))
        except OSError:
            return b""

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(head, entries))
