"""A cache of manifests that take long to make, in the user's cache folder.

Ten thousand Parquet footers or a million tar headers are read only once. The key of an entry is a digest of
the listing: names, sizes and times of change.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.sources.listing import Listing

# Part of the key. Add 1 when the stored arrays change.
_VERSION = 5


def cache_folder() -> Path:
    """$BEIT_CACHE, or beit/ under $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("BEIT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beit"


def cached(
    kind: str, listing: Listing, build: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the arrays that `build` makes from a listing, from the cache if they are there."""
    state = hashlib.blake2b(
        f"{_VERSION}\0{kind}\0{storage.resolve(listing.root)[1]}\0".encode(errors="surrogateescape"),
        digest_size=16,
    )
    for entry in listing.entries:
        state.update(f"{entry.name}\0{entry.size}\0{entry.changed_ns}\0".encode(errors="surrogateescape"))
    path = cache_folder() / "manifests" / f"{state.hexdigest()}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = build()
    try:
        with storage.open_output(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError:
        pass  # A cache that cannot be written costs time only.
    return arrays
