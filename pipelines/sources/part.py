"""A part of the images of another source, drawn once: the same for the same seed, and a smaller one is part of a larger one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines import seeds
from pipelines.sources.base import Columns, Manifest, Rows, Unit


@dataclass(frozen=True, eq=False)
class PartUnit(Unit):
    """Some rows of a unit."""

    whole: Unit
    rows: Rows
    """int64 [n]: rows of `whole` that this unit has."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked rows."""
        return self.whole.read(self.rows[rows], columns)

    def describe(self, row: int) -> str:
        """Where the row lies."""
        return self.whole.describe(int(self.rows[row]))


@dataclass(frozen=True, kw_only=True, eq=False)
class PartManifest(Manifest):
    """Some rows of another manifest: 8 bytes an image."""

    kind: ClassVar[str] = "part"

    whole: Manifest
    units: NDArray[np.int64]
    """int64 [U]: the unit of `whole` that each unit is a part of."""
    kept: NDArray[np.int64]
    """int64 [images]: row within its unit of `whole`, unit after unit."""

    def unit(self, index: int) -> Unit:
        """A unit by its number."""
        return PartUnit(self.whole.unit(int(self.units[index])), self.kept[self.images_of(index)].copy())

    def images_of(self, index: int) -> slice:
        """Where the images of a unit stand in the order of all."""
        end = int(self._ends[index])
        return slice(end - int(self.rows[index]), end)

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.rows, dtype=np.int64)


def all_rows(manifest: Manifest) -> dict[str, Any]:
    """What `PartManifest` adds to a manifest, for a part that is all of it."""
    return {
        "whole": manifest,
        "units": np.arange(len(manifest.rows)),
        "kept": np.concatenate([np.arange(rows) for rows in manifest.rows]),
    }


def draw(groups: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of the images, the same share of every group (at least one image of each).

    Args:
        groups: int [images], from 0.
        fraction: In (0, 1].
        seed: The same images for the same seed.

    Returns:
        Bool [images].
    """
    order = seeds.generator(seed, seeds.FRACTION, 0, 0, 0).permutation(len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    starts = np.cumsum(counts) - counts
    wanted = np.minimum(counts, np.maximum(1, np.round(fraction * counts).astype(np.int64)))
    place = np.arange(len(by_group)) - np.repeat(starts, counts)
    taken = np.zeros(len(by_group), bool)
    taken[by_group[place < np.repeat(wanted, counts)]] = True
    return taken


def rows_taken(part: PartManifest, taken: NDArray[np.bool_], fraction: float, seed: int) -> dict[str, Any]:
    """The fields of a smaller part, of the images that `draw` took by this fraction and seed."""
    unit = np.repeat(np.arange(len(part.rows)), part.rows)
    rows = np.bincount(unit[taken], minlength=len(part.rows))
    state = hashlib.blake2b(f"{part.digest}\0{fraction!r}\0{seed}".encode(), digest_size=16)
    return {
        "rows": rows[rows > 0].astype(np.int32),
        "digest": state.hexdigest(),
        "units": part.units[rows > 0],
        "kept": part.kept[taken],
    }


def take_part(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    """A share of the images, drawn at random, whatever is on them."""
    if fraction >= 1:
        return manifest
    part = PartManifest(
        rows=manifest.rows,
        digest=manifest.digest,
        columns=manifest.columns,
        class_names=manifest.class_names,
        annotation_names=manifest.annotation_names,
        **all_rows(manifest),
    )
    taken = draw(np.zeros(manifest.total, np.int64), fraction, seed)
    return replace(part, **rows_taken(part, taken, fraction, seed))
