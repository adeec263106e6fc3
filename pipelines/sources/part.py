"""A random part of the images of another source. The same seed always gives the same part, and a larger part
contains every smaller one.

Every image gets a random number, and the images with the smallest numbers are taken. The numbers are not
stored: when a unit is read, they are drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from pipelines import seeds
from pipelines.sources.base import Columns, Manifest, Rows, Unit

AT_ONCE = 1 << 22
"""Numbers that are held in memory at a time."""

BUCKETS = 1 << 16
"""Equal intervals of [0, 1) in which the numbers are counted, to find the interval of the largest number that
is taken. Only the numbers in that interval are sorted."""


@dataclass(frozen=True, eq=False)
class PartUnit(Unit):
    """Some rows of a unit."""

    whole: Unit
    rows: Rows
    """int64 [n]: rows of `whole` in this unit."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked rows."""
        return self.whole.read(self.rows[rows], columns)

    def describe(self, row: int) -> str:
        """Where the row lies."""
        return self.whole.describe(int(self.rows[row]))


@dataclass(frozen=True, kw_only=True, eq=False)
class PartManifest(Manifest):
    """Some rows of another manifest: 20 bytes a unit."""

    kind: ClassVar[str] = "part"

    whole: Manifest
    units: NDArray[np.int64]
    """int64 [U]: the unit of `whole` that each unit is a part of."""
    starts: NDArray[np.int64]
    """int64 [U]: images of `whole` before that unit."""
    seed: int
    largest: float
    """Images whose number is at most this are taken."""

    def unit(self, index: int) -> Unit:
        """A unit by its number."""
        number = int(self.units[index])
        drawn = draw_numbers(self.seed, int(self.starts[index]), int(self.whole.rows[number]))
        return PartUnit(self.whole.unit(number), np.flatnonzero(drawn <= self.largest))


def draw_numbers(seed: int, start: int, images: int) -> NDArray[np.float64]:
    """Draw the numbers of some images, uniform in [0, 1); `start` images come before them."""
    generator = seeds.generator(seed, seeds.FRACTION, 0, 0, 0)
    cast(np.random.PCG64, generator.bit_generator).advance(start)  # A number takes one step.
    return generator.random(images)


def take_part(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    """Take a random share of the images, at least one.

    Goes three times through the numbers of all images, and holds some millions of them.
    """
    if fraction >= 1:
        return manifest
    largest = _largest(manifest.total, max(1, round(fraction * manifest.total)), seed)
    ends, rows = np.cumsum(manifest.rows, dtype=np.int64), np.zeros(len(manifest.rows), np.int64)
    for start, drawn in _all_numbers(manifest.total, seed):
        rows += np.bincount(
            np.searchsorted(ends, start + np.flatnonzero(drawn <= largest), side="right"), minlength=len(rows)
        )
    state = hashlib.blake2b(f"{manifest.digest}\0{fraction!r}\0{seed}".encode(), digest_size=16)
    units = np.flatnonzero(rows)
    return PartManifest(
        rows=rows[units].astype(np.int32),
        digest=state.hexdigest(),
        columns=manifest.columns,
        class_names=manifest.class_names,
        annotation_names=manifest.annotation_names,
        passed_over=manifest.passed_over,
        whole=manifest,
        units=units,
        starts=(ends - manifest.rows)[units],
        seed=seed,
        largest=largest,
    )


def _all_numbers(images: int, seed: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Draw the numbers of all images, some at a time, each time with the count of images before them."""
    for start in range(0, images, AT_ONCE):
        yield start, draw_numbers(seed, start, min(AT_ONCE, images - start))


def _largest(images: int, taken: int, seed: int) -> float:
    """Return the number below which this many of all images lie."""
    counts = np.zeros(BUCKETS, np.int64)
    for _, drawn in _all_numbers(images, seed):
        counts += np.bincount((drawn * BUCKETS).astype(np.int64), minlength=BUCKETS)
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, taken))
    inside = [drawn[(drawn * BUCKETS).astype(np.int64) == bucket] for _, drawn in _all_numbers(images, seed)]
    return float(np.sort(np.concatenate(inside))[taken - 1 - int(ends[bucket] - counts[bucket])])
