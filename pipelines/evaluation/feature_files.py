"""Features as files: one Parquet file for some hundred neighbouring images, and a description that appears
when all files are written.

features.json                        what the features were made from; missing until every file exists
unfinished.json                      the same, until then
parts/part-00000-of-00040.parquet    a row for each image that could be decoded: unit, row, path, label,
                                     class_name, layer_9_mean, …
undecodable.csv                      the other images, with the reason
model/                               a copy of the model
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.images.decode import Status
from beit.vit.pooling import Pooling
from pipelines import storage
from pipelines.csv_files import read_csv, write_csv
from pipelines.parts.job import Piece
from pipelines.parts.store import PartStore
from pipelines.sources.base import READERS, Kind

FORMAT = 1

FEATURES_FILE = "features.json"
UNFINISHED_FILE = "unfinished.json"
UNDECODABLE_FILE = "undecodable.csv"
PARTS_FOLDER = "parts"
MODEL_FOLDER = "model"

# Key in the footer of every file: [path, reason] of its images that could not be decoded.
_UNDECODABLE = b"undecodable"


def plan_files(rows: NDArray[np.int32], images_per_file: int) -> list[list[Piece]]:
    """Assign images to files: whole units as long as they fit, larger units in equal pieces. Every image is
    in one file.
    """
    files: list[list[Piece]] = []
    held = images_per_file
    for unit, count in enumerate(rows.tolist()):
        if count > images_per_file:
            bounds = np.linspace(0, count, -(-count // images_per_file) + 1).round().astype(int).tolist()
            files += [[Piece(unit, first, last)] for first, last in itertools.pairwise(bounds)]
            held = images_per_file
        elif held + count > images_per_file:
            files.append([Piece(unit, 0, count)])
            held = count
        else:
            files[-1].append(Piece(unit, 0, count))
            held += count
    return files


@dataclass(frozen=True, kw_only=True)
class Description:
    """What features were made from."""

    format: int = FORMAT

    data: str
    """Digest of the manifest of the images."""
    images: int
    """Number of images in the manifest."""

    model: str
    """Digest of the model's weights."""
    image_size: int
    view: dict[str, Any]
    """How pixels were decoded and normalised."""
    centre: float | None
    """Side of the centre square that the model sees, as a share of the shorter side. None: the authors' value
    for the size."""

    layers: list[int]
    """Numbers of blocks from 1."""
    poolings: list[Pooling]
    dim: int
    """Width of a feature."""
    numbers: str
    """float16 or float32."""
    bf16: bool
    """Whether the model computed in bfloat16."""

    label: str | None
    """Column of the data that was written as the label. None: there is no label."""
    label_kind: Kind | None
    """Type of the label's values, the same in every file."""
    class_names: list[str] | None
    images_per_file: int


def column_name(layer: int, pooling: Pooling) -> str:
    """The Parquet column of a feature."""
    return f"layer_{layer}_{pooling}"


@dataclass(frozen=True)
class FeatureFiles(PartStore[Description]):
    """A folder of features with its description. No file is kept open."""

    description_files: ClassVar[tuple[str, ...]] = (UNFINISHED_FILE, FEATURES_FILE)
    may_precede: ClassVar[frozenset[str]] = frozenset({MODEL_FOLDER})
    what: ClassVar[str] = "features"
    mismatch: ClassVar[str] = "holds other features"
    format: ClassVar[int | None] = FORMAT

    pieces: list[list[Piece]] = field(repr=False)
    """The images of each file."""

    @classmethod
    def create(cls, path: str, description: Description, rows: NDArray[np.int32]) -> FeatureFiles:
        """Create a folder, or resume one that was begun with the same description.

        Args:
            path: Folder or bucket URI.
            description: What the features are made from.
            rows: Images of each unit of the manifest.

        Raises:
            UserError: If the folder holds other features or anything else.
        """
        files = cls(storage.absolute(path), description, plan_files(rows, description.images_per_file))
        files.begin()
        return files

    @property
    def parts(self) -> int:
        """Number of files of the complete features."""
        return len(self.pieces)

    def name(self, part: int) -> str:
        """Path of a file below the folder."""
        return f"{PARTS_FOLDER}/part-{part:05d}-of-{self.parts:05d}.parquet"

    def images_of(self, number: int) -> int:
        """Count the images of a file, including those that cannot be decoded."""
        return sum(piece.images for piece in self.pieces[number])

    def write(
        self,
        number: int,
        about: Mapping[str, NDArray[Any]],
        features: Mapping[tuple[int, Pooling], NDArray[np.floating]],
    ) -> None:
        """Write a file. It appears under its name only when it is complete.

        Args:
            number: Number of the file.
            about: "unit", "row", "path", "status" and, if the description says so, "label" of all its images,
                [n].
            features: [decoded, D] by layer and pooling, for the images with status 0.
        """
        good = about["status"] == 0
        columns = {
            "unit": pa.array(about["unit"][good].astype(np.int32)),
            "row": pa.array(about["row"][good].astype(np.int32)),
            "path": pa.array(about["path"][good].tolist(), pa.string()),
        }
        if self.description.label is not None:
            columns["label"] = _label_array(about["label"][good])
            if (names := self.description.class_names) is not None and self.description.label_kind == "whole":
                found = [
                    names[label] if 0 <= label < len(names) else None
                    for label in about["label"][good].tolist()
                ]
                columns["class_name"] = pa.array(found, pa.string())
        kind = pa.list_(
            pa.float16() if self.description.numbers == "float16" else pa.float32(), self.description.dim
        )
        for (layer, pooling), values in features.items():
            columns[column_name(layer, pooling)] = pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), type=kind
            )
        bad = [[about["path"][i], Status(int(about["status"][i])).reason] for i in np.flatnonzero(~good)]
        schema = pa.schema(
            {name: column.type for name, column in columns.items()}, metadata={_UNDECODABLE: json.dumps(bad)}
        )
        with self.open_output(number) as file:
            pq.write_table(
                pa.Table.from_arrays(list(columns.values()), schema=schema),
                file,
                compression="zstd",
                use_dictionary=["path", "class_name"],
            )

    def finish(self) -> None:
        """Check that every image is there once, then mark the features as complete.

        Raises:
            RuntimeError: If an image is missing or occurs twice.
        """
        if storage.exists(storage.join(self.path, FEATURES_FILE)):
            return
        footers = self._footers()
        bad = [entry for _, entries in footers for entry in entries]
        for number, (rows, entries) in enumerate(footers):
            if rows + len(entries) != self.images_of(number):
                raise RuntimeError(
                    f"{self.name(number)} has {rows} + {len(entries)} images instead of "
                    f"{self.images_of(number)}"
                )
        if bad:
            write_csv(storage.join(self.path, UNDECODABLE_FILE), ["image", "reason"], bad)
        self.write_description(FEATURES_FILE)
        storage.delete_file(storage.join(self.path, UNFINISHED_FILE))

    def undecodable(self) -> list[tuple[str, str]]:
        """List (image, reason) of the images without features."""
        listed = read_csv(storage.join(self.path, UNDECODABLE_FILE))
        return [(entry["image"], entry["reason"]) for entry in listed]

    def read(self, layer: int, pooling: Pooling) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Read one feature of all images that could be decoded, in the order of units and rows: [n, D] as
        written, and labels int64 [n].
        """
        name = column_name(layer, pooling)

        def read(number: int) -> pa.Table:
            with self.open_input(number) as file:
                return pq.ParquetFile(file, pre_buffer=True).read(columns=[name, "label"])

        # Each file is copied to its place in one array, so memory holds this array and only a few files.
        about = self.description
        images = about.images - len(self.undecodable())
        features = np.empty((images, about.dim), np.float16 if about.numbers == "float16" else np.float32)
        labels = np.empty(images, np.int64)
        end = 0
        with ThreadPoolExecutor(READERS) as threads:
            for table in threads.map(read, range(self.parts)):
                start, end = end, end + len(table)
                features[start:end] = (
                    table.column(name).combine_chunks().flatten().to_numpy().reshape(-1, about.dim)
                )
                labels[start:end] = table.column("label").to_numpy()
        return features, labels

    def _footers(self) -> list[tuple[int, Sequence[list[str]]]]:
        """Read the number of rows of every file, and the images that it lists as undecodable."""

        def read(number: int) -> tuple[int, Sequence[list[str]]]:
            with self.open_input(number) as file:
                footer = pq.read_metadata(file)
            return footer.num_rows, json.loads(footer.metadata[_UNDECODABLE])

        with ThreadPoolExecutor(READERS) as threads:
            return list(threads.map(read, range(self.parts)))


def _label_array(values: NDArray[Any]) -> pa.Array:
    """Make an Arrow array of labels, with nulls for missing ones: -1, NaN, or an empty text."""
    if values.dtype.kind == "i":
        return pa.array(values.astype(np.int64), mask=values < 0)
    if values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    return pa.array([value or None for value in values.tolist()], pa.string())
