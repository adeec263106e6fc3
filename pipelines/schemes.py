"""Schemes of paths: which name storage, and what is said of the others.

A configuration checks its paths when it is made, so this module imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from beit.checks import Constraint
from beit.errors import UserError

STORAGE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hf")
"""Schemes of the object stores that pyarrow opens. A local path has none, or file://."""

_UNKNOWN = "begins with an unknown scheme"


def scheme_of(uri: str | Path) -> str:
    """Return the scheme of a URI in lower case: the case of a scheme has no meaning (RFC 3986). Return "" for
    a local path, also for one with file://.
    """
    before, mark, _ = str(uri).partition("://")
    scheme = before.lower() if mark and "/" not in before else ""
    return "" if scheme == "file" else scheme


def has_known_scheme(uri: str | Path) -> bool:
    """Whether a path is local, or names an object store that can be opened."""
    return scheme_of(uri) in ("", *STORAGE_SCHEMES)


def check_scheme(uri: str | Path, *, option: str | None = None) -> None:
    """Refuse a URI that names no storage.

    Args:
        uri: As the user typed it.
        option: What it was given by. None: it stands alone on the command line.

    Raises:
        UserError: With the nearest scheme, or all of them.
    """
    if not has_known_scheme(uri):
        raise unknown_scheme(uri, option=option)


def unknown_scheme(uri: str | Path, *, option: str | None, others: Iterable[str] = ()) -> UserError:
    """Say that nothing is known by the scheme of a URI; `others` are schemes that are known besides those of
    storage.
    """
    return UserError(f"{f'{option}=' if option else ''}{uri} {_UNKNOWN}", _known_schemes(uri, others))


def _known_schemes(uri: str | Path, others: Iterable[str] = ()) -> str:
    """Name the nearest scheme if one was misspelt, and every scheme that is known."""
    known = [*STORAGE_SCHEMES, *(scheme for scheme in others if scheme not in STORAGE_SCHEMES)]
    scheme = scheme_of(uri)
    # Of two letters one may be wrong.
    close = difflib.get_close_matches(scheme, known, n=1, cutoff=0.6 if len(scheme) > 2 else 0.5)
    hint = f"perhaps you meant {close[0]}://{str(uri).partition('://')[2]}; " if close else ""
    return f"{hint}give a local path, or one that begins with {', '.join(f'{name}://' for name in known)}"


StoragePath = Annotated[
    str, Constraint(has_known_scheme, _UNKNOWN, "a local path, or s3://bucket/…", remedy=_known_schemes)
]
"""A local path, or a URI of an object store: where something of ours is read or written."""
