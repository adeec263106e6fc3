"""The interface of all sources. A manifest lists the units of the data, and a unit reads its rows."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.passed_over import PassedOver
from pipelines.sources.splits import split_depth
from pipelines.storage import Entry

Rows = NDArray[np.int64]
"""int64 [n]: numbers of rows within a unit."""

Columns = dict[str, NDArray[Any]]
"""Column name -> values [n]; encoded images are an object array of bytes."""

Kind = Literal["whole", "number", "text"]
"""What the values of a column are: whole numbers, other numbers, or text and all else."""

READERS = 16
"""Files that are read side by side on the driver."""

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")
"""Names that label columns go by, the hub's first."""

PATH_COLUMN = "image.path"
"""Column with the name under which an image was stored, as object array of str."""


@dataclass(frozen=True, kw_only=True)
class ChosenColumns:
    """Columns that the user names; None: found by their names and types."""

    image: str | None = None
    label: str | None = None
    annotation: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """What is named, by what it is."""
        return {what: name for what, name in vars(self).items() if name is not None}


def flag_beside(option: str, name: str) -> str:
    """Return the flag of another option of the same data: --data.image beside `data.train`, --image beside
    `source`.
    """
    return f"--data.{name}" if "." in option else f"--{name}"


class Unit(ABC):
    """A piece of the data that can be read on its own. Small, immutable, and can be pickled."""

    @abstractmethod
    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read some rows, in the order given.

        Args:
            rows: int64 [n], numbers within the unit.
            columns: "image" (object array of bytes; a missing image is empty) and others of
                `Manifest.columns`.

        Raises:
            OSError: When the storage fails. A file that is there but is no image is no failure here.
        """

    @abstractmethod
    def describe(self, row: int) -> str:
        """Say where a row lies, for people."""


def first_label_column(columns: Sequence[str]) -> str | None:
    """Return the first of `LABEL_COLUMNS` among some columns."""
    return next((name for name in LABEL_COLUMNS if name in columns), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest(ABC):
    """The sorted list of units. Pickled, it takes bytes a unit for Parquet, and bytes an image for folders
    and tars.
    """

    kind: ClassVar[str]
    """parquet, folder, tar, or one of your own."""

    rows: NDArray[np.int32]
    """int32 [U]: rows of each unit, at least 1."""

    digest: str
    """Digest of the listing (names and sizes) and the row counts: equal digests mean equal keys."""

    columns: tuple[str, ...]
    """The columns that `Unit.read` can deliver."""

    class_names: tuple[str, ...] | None
    """Names of the labels, if the data has them; of the first of `LABEL_COLUMNS` if there are several."""

    annotation_names: tuple[str, ...] | None = None
    """Names of the ids in annotations, from 0, if the data has them."""

    passed_over: PassedOver = field(default_factory=dict)
    """Entries of the listing that are no images, counted by reason. No part of the digest."""

    content: str | None = None
    """Digest of what the files say about their content, such as the footers of Parquet. It differs where a
    file was replaced by another one of the same size. None: only reading all of them would tell."""

    @property
    def total(self) -> int:
        """Rows of all units."""
        return int(self.rows.sum(dtype=np.int64))

    @abstractmethod
    def unit(self, index: int) -> Unit:
        """Return a unit by its number."""

    def column(self, name: str) -> NDArray[Any]:
        """Read the values [images] of a column, unit after unit."""

        def read(index: int) -> NDArray[Any]:
            return self.unit(index).read(np.arange(int(self.rows[index])), (name,))[name]

        with ThreadPoolExecutor(READERS) as threads:
            return np.concatenate(list(threads.map(read, range(len(self.rows)))))

    @property
    def label_column(self) -> str | None:
        """The first of `LABEL_COLUMNS` that is there."""
        return first_label_column(self.columns)

    def names_of(self, column: str) -> tuple[str, ...] | None:
        """Return the name of each number in a label column, if the data has them."""
        return self.class_names

    def conflict_of(self, column: str) -> str | None:
        """Say which files disagree about the type of a column; None if they agree."""
        return None

    def kind_of(self, column: str) -> Kind:
        """Return the kind of a column's values. Those of folders and tars are labels, unless they are
        names.
        """
        return "text" if column == PATH_COLUMN else "whole"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The data that a path holds."""

    uri: str
    """As the user gave it."""

    manifest: Manifest

    total_bytes: int
    """Size of the files that were found."""

    summary: str
    """What the path holds, in a phrase with numbers."""

    warnings: tuple[str, ...] = ()
    """What works but should be changed, each with its remedy."""

    def unit(self, index: int) -> Unit:
        """Return a unit by its number."""
        return self.manifest.unit(index)


def listing_digest(kind: str, entries: Iterable[Entry], rows: NDArray[np.int32]) -> str:
    """Compute the digest of a manifest."""
    state = hashlib.blake2b(kind.encode(), digest_size=16)
    for entry in entries:
        state.update(f"{entry.name}\0{entry.size}\0".encode(errors="surrogateescape"))
    state.update(rows.astype("<i4").tobytes())
    return state.hexdigest()


def bytes_column(values: Sequence[bytes | None]) -> NDArray[np.object_]:
    """Put encoded images into an object array [n]."""
    column = np.empty(len(values), object)
    column[:] = [value or b"" for value in values]
    return column


def classes_of_folders(folders: Sequence[str]) -> tuple[list[int], tuple[str, ...] | None]:
    """Return the class of each folder: its first name below the part that all folders share.

    Args:
        folders: Distinct folders that hold images, with forward slashes; "" is the top.

    Returns:
        The label of each folder, and the class names in alphabetical order; labels -1 and None where the
        folders tell no classes apart.
    """
    parts = [folder.split("/") if folder else [] for folder in folders]
    if (splits := split_depth(parts)) is not None:  # The folders train and val are no classes.
        parts = [path[:splits] + path[splits + 1 :] for path in parts]
    depth = 0
    while all(len(path) > depth for path in parts) and len({path[depth] for path in parts}) == 1:
        depth += 1
    tops = [path[depth] if len(path) > depth else None for path in parts]
    names = sorted({top for top in tops if top is not None})
    if not names:
        return [-1] * len(folders), None
    numbers = {name: number for number, name in enumerate(names)}
    return [-1 if top is None else numbers[top] for top in tops], tuple(names)
