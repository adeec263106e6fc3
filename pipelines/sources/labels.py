"""Labels of images. They are read and checked once, on the driver; then the units carry them, and no task
reads or interprets them again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError
from pipelines import seeds
from pipelines.sources.base import LABEL_COLUMNS, Columns, Manifest, Rows, Source, flag_beside
from pipelines.sources.part import PartUnit


@dataclass(frozen=True, eq=False)
class LabelledUnit(PartUnit):
    """Some rows of a unit, each with its label."""

    labels: NDArray[np.int32]
    """int32 [n]"""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked rows; labels are at hand."""
        found = (
            super().read(rows, [column for column in columns if column != "label"])
            if set(columns) != {"label"}
            else {}
        )
        if "label" in columns:
            found["label"] = self.labels[rows].astype(np.int64)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledManifest(Manifest):
    """Some rows of another manifest, with labels 0 .. K - 1: 12 bytes an image."""

    kind: ClassVar[str] = "labelled"

    whole: Manifest
    units: NDArray[np.int64]
    """int64 [U]: the unit of `whole` that each unit is a part of."""
    kept: NDArray[np.int64]
    """int64 [images]: row within its unit of `whole`, unit after unit."""
    labels: NDArray[np.int32]
    """int32 [images]. The first of these numbers have the names in `class_names`, if there are any."""

    def unit(self, index: int) -> LabelledUnit:
        """A unit by its number."""
        end = int(self._ends[index])
        images = slice(end - int(self.rows[index]), end)
        return LabelledUnit(
            self.whole.unit(int(self.units[index])), self.kept[images].copy(), self.labels[images].copy()
        )

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.rows, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSource(Source):
    """A source whose labels are checked."""

    manifest: LabelledManifest


def label_source(
    source: Source,
    *,
    option: str = "data.train",
    column: str | None = None,
    classes: int | None = None,
    follows: LabelledManifest | None = None,
) -> LabelledSource:
    """Check the labels of a source.

    Where labels are names, the classes are numbered in alphabetical order, or as in the set that is followed.

    Args:
        source: Images with a label column, in class folders, or in WebDataset tars with .cls members.
        option: How the path was given, for messages.
        column: The label column. None: the first of `LABEL_COLUMNS` that is there.
        classes: How many classes there are. None: as many as have names, or the largest label + 1.
        follows: The training set of a validation set: its numbers stand for the same classes.

    Raises:
        UserError: Where there are no labels, or one that is none, whose file is named; where the classes are
            not those of `follows`, or cannot be known to be.
    """
    manifest = source.manifest
    column = _label_column(manifest, option, source.uri, column)
    values, names = (
        _whole_or_names(manifest.column(column), column, option, source.uri),
        manifest.names_of(column),
    )
    if values.dtype == object:
        found = sorted({value for value in values.tolist() if value})
        names = tuple(found) if names is None else names
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers.get(value, -1) for value in values.tolist()], np.int64)
    else:
        whole = np.isfinite(values) & (values == np.floor(values))
        labels = np.where(whole, values, -1).astype(np.int64)
    if follows is not None and names is not None:
        if follows.class_names is not None:
            labels, names = _renumbered(labels, names, follows.class_names, option, source.uri)
        # Parquet with names of classes has their numbers too; elsewhere they are numbered here, in
        # alphabetical order.
        elif (values.dtype == object or manifest.kind != "parquet") and not _is_numbering(
            names, class_count(follows, classes)
        ):
            raise UserError(
                f"{option}={source.uri} has {len(names)} classes by name, such as {names[0]}, and the "
                f"training data has {class_count(follows, classes)} by number only",
                "give both as class folders, or both with numbers: nothing says which name is which number",
            )
    count = classes or (len(names) if names is not None else int(labels.max(initial=-1)) + 1)
    bad = np.flatnonzero((labels < 0) | (labels >= count))
    if len(bad):
        unit, row = _place(manifest, int(bad[0]))
        first = values[bad[:1]].tolist()[0]
        raise UserError(
            f"{option}={source.uri}: {len(bad):,} of {len(labels):,} labels are none of 0 to {count - 1}, "
            f"the first {first!r} of {manifest.unit(unit).describe(row)}",
            "mend or leave out these images" + ("" if classes is None else ", or raise --classes")
            if follows is None
            else f"give images of the {count} classes of the training data",
        )
    labelled = LabelledManifest(
        rows=manifest.rows,
        digest=manifest.digest,
        columns=tuple(dict.fromkeys((*manifest.columns, "label"))),
        class_names=tuple(names) if names is not None else None,
        passed_over=manifest.passed_over,
        whole=manifest,
        units=np.arange(len(manifest.rows)),
        kept=np.concatenate([np.arange(rows) for rows in manifest.rows]),
        labels=labels.astype(np.int32),
    )
    return LabelledSource(**{**vars(source), "manifest": labelled})


def class_count(manifest: LabelledManifest, classes: int | None) -> int:
    """Return K, the number of classes of a head."""
    if classes is not None:
        return classes
    return len(manifest.class_names) if manifest.class_names is not None else int(manifest.labels.max()) + 1


def take_fraction(manifest: LabelledManifest, fraction: float, seed: int) -> LabelledManifest:
    """Take a part of the images, the same share of every class (at least one image of each)."""
    return (
        manifest
        if fraction >= 1
        else _part(manifest, _draw(manifest.labels, fraction, seed), f"{fraction!r}\0{seed}")
    )


def take_at_most(manifest: LabelledManifest, images: int, seed: int) -> LabelledManifest:
    """Take at most this many images, the same share of every class; one image of some classes if there are
    more classes than images.
    """
    if manifest.total <= images:
        return manifest
    taken = _draw(manifest.labels, images / manifest.total, seed)
    if taken.sum() > images:  # At least one of each class, and shares are rounded.
        order = seeds.generator(seed, seeds.FRACTION, 0, 0, 1).permutation(np.flatnonzero(taken))
        taken[order[images:]] = False
    return _part(manifest, taken, f"at most {images}\0{seed}")


def _part(manifest: LabelledManifest, taken: NDArray[np.bool_], what: str) -> LabelledManifest:
    """Take some images [images]; `what` tells parts apart."""
    rows = np.bincount(
        np.repeat(np.arange(len(manifest.rows)), manifest.rows)[taken], minlength=len(manifest.rows)
    )
    state = hashlib.blake2b(f"{manifest.digest}\0{what}".encode(), digest_size=16)
    return replace(
        manifest,
        rows=rows[rows > 0].astype(np.int32),
        digest=state.hexdigest(),
        units=manifest.units[rows > 0],
        kept=manifest.kept[taken],
        labels=manifest.labels[taken],
    )


def _draw(labels: NDArray[np.int32], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose images [images]: of every class those that come first in one random order of all."""
    order = seeds.generator(seed, seeds.FRACTION, 0, 0, 0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    wanted = np.minimum(counts, np.maximum(1, np.round(fraction * counts).astype(np.int64)))
    place = np.arange(len(by_class)) - np.repeat(starts, counts)
    taken = np.zeros(len(by_class), bool)
    taken[by_class[place < np.repeat(wanted, counts)]] = True
    return taken


def _label_column(manifest: Manifest, option: str, uri: str, column: str | None) -> str:
    name = column if column is not None else manifest.label_column
    for candidate in LABEL_COLUMNS if name is None else (name,):
        if (conflict := manifest.conflict_of(candidate)) is not None:
            raise UserError(
                f"{option}={uri}: {conflict}",
                "write the labels of all files as numbers, or all as names, or name another column by "
                f"{flag_beside(option, 'label')}",
            )
    if name is not None and name in manifest.columns:
        return name
    there = ", ".join(name for name in manifest.columns if not name.startswith("image")) or "images only"
    if manifest.kind == "parquet":
        remedy = (
            "give Parquet shards with a column label of whole numbers, or name the column by "
            f"--data.label (there are: {there})"
        )
    else:
        remedy = (
            "put the images into a folder for each class, give tars with .cls members, or Parquet "
            "shards with a column label"
        )
    what = (
        f"data.label={column} is no column of {option}={uri}"
        if column is not None
        else f"{option}={uri} has no labels"
    )
    raise UserError(what, remedy)


def _whole_or_names(values: NDArray[Any], column: str, option: str, uri: str) -> NDArray[Any]:
    """Return labels [images] as numbers with NaN, or as names with None for a missing one; yes and no as 1
    and 0.

    Raises:
        UserError: If they are anything else, such as lists of labels.
    """
    if values.dtype != object:
        return values
    kinds = {type(value) for value in values.tolist()} - {type(None)}
    if kinds <= {bool, int, float}:
        return np.array([np.nan if value is None else value for value in values.tolist()], np.float64)
    if kinds <= {str}:
        return values
    other = next(value for value in values.tolist() if not isinstance(value, str | bool | int | float | None))
    raise UserError(
        (
            f"{option}={uri}: the column {column} holds what is neither a number nor a name, such as "
            f"{' '.join(repr(other).split())[:60]}"
        ),
        "an image has one label here; name another column by --data.label",
    )


def unnamed(train: LabelledManifest, other: LabelledManifest, option: str) -> list[str]:
    """Warn if validation images have numbers and training images have names."""
    if train.class_names is None or other.class_names is not None:
        return []
    return [
        f"warning: {option} has labels by number only, taken as places in the training data's list of "
        f"classes: 0 is {train.class_names[0]}, {len(train.class_names) - 1} is {train.class_names[-1]}"
    ]


def _renumbered(
    labels: NDArray[np.int64], names: Sequence[str], wanted: Sequence[str], option: str, uri: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number labels by another list of names."""
    numbers = {name: number for number, name in enumerate(wanted)}
    unknown = [
        names[label]
        for label in np.unique(labels[labels >= 0]).tolist()
        if label < len(names) and names[label] not in numbers
    ]
    if unknown:
        raise UserError(
            f"{option}={uri} has {len(unknown)} classes that the training data lacks, such as {unknown[0]}",
            "give both the same classes",
        )
    table = np.array([numbers.get(name, -1) for name in names] + [-1])
    inside = (labels >= 0) & (labels < len(names))
    return table[np.where(inside, labels, len(names))], tuple(wanted)


def _is_numbering(names: Sequence[str], classes: int) -> bool:
    """Whether names in alphabetical order stand for the numbers from 0: all are there, and none is another
    number.
    """
    return len(names) == classes and all(
        not name.isdecimal() or int(name) == number for number, name in enumerate(names)
    )


def _place(manifest: Manifest, image: int) -> tuple[int, int]:
    """Return unit and row of an image, counted through all units."""
    ends = np.cumsum(manifest.rows, dtype=np.int64)
    unit = int(np.searchsorted(ends, image, side="right"))
    return unit, image - int(ends[unit] - manifest.rows[unit])
