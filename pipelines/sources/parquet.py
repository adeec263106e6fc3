"""Parquet shards. A unit is a row group of one shard."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.errors import UserError
from pipelines import storage
from pipelines.sources.base import (
    PATH_COLUMN,
    READERS,
    Columns,
    Kind,
    Manifest,
    Rows,
    Unit,
    bytes_column,
    first_label_column,
    listing_digest,
)
from pipelines.sources.cache import cached
from pipelines.sources.listing import Listing

# Names that image columns go by, the hub's first.
_IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")

# Lists of names in a file's metadata.
_NAMES = ("class_names", "annotation_names")

_MOST_ROWS = 2000
_MOST_BYTES = 512 << 20


@dataclass(frozen=True)
class ParquetUnit(Unit):
    """One row group of one file."""

    uri: str
    size: int
    """Size of the file, in bytes."""
    group: int
    image: str
    """Name of the image column."""
    nested: bool
    """Whether the image column is struct<bytes, …>, not plain binary."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the row group's asked columns and take rows of it."""
        leaves = {
            "image": f"{self.image}.bytes" if self.nested else self.image,
            PATH_COLUMN: f"{self.image}.path",
        }
        wanted = [leaves.get(column, column) for column in columns]
        with storage.open_input(self.uri) as file:
            table = pq.ParquetFile(
                file, metadata=_footer(self.uri, self.size), pre_buffer=True
            ).read_row_group(self.group, columns=wanted)
        table = table.take(pa.array(rows, pa.int64()))
        return {
            column: _values(table.column(self.image if column in leaves else column), column)
            for column in columns
        }

    def describe(self, row: int) -> str:
        """File, row group and row."""
        return f"{self.uri}, row group {self.group}, row {row}"


def _values(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    """Return the values [n] of a column; encoded files as bytes."""
    if name == PATH_COLUMN:
        return np.array([(value or {}).get("path") or "" for value in column.to_pylist()], object)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return bytes_column([None if value is None else value["bytes"] for value in column.to_pylist()])
    if _is_binary(column.type):
        return bytes_column(column.to_pylist())
    if pa.types.is_dictionary(column.type):  # As it is, a null would become the last name.
        column = column.cast(column.type.value_type)
    return np.asarray(column.to_numpy())


@functools.lru_cache(maxsize=16)
def _footer(uri: str, size: int) -> pq.FileMetaData:
    # Kept for the process: a shard's footer can be hundreds of kilobytes, and its row groups come one by one.
    with storage.open_input(uri) as file:
        return pq.read_metadata(file)


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetManifest(Manifest):
    """The row groups of all files, in the order of the listing."""

    kind: ClassVar[str] = "parquet"

    root: str
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    file: NDArray[np.int32]
    """int32 [U]: the file of each unit."""
    group: NDArray[np.int32]
    """int32 [U]: the row group of each unit in its file."""
    image: str
    nested: bool
    names_of_columns: dict[str, tuple[str, ...]]
    """Names of the numbers in label columns, as the Hugging Face library writes them."""

    def names_of(self, column: str) -> tuple[str, ...] | None:
        """Return the column's own names; `class_names` belong to the first of `LABEL_COLUMNS`, or to any
        column if none of these is there.
        """
        own = self.class_names if column == (self.label_column or column) else None
        return own if own is not None else self.names_of_columns.get(column)

    def unit(self, index: int) -> ParquetUnit:
        """A row group by its number."""
        file = int(self.file[index])
        uri = storage.join(self.root, self.names[file])
        return ParquetUnit(uri, int(self.sizes[file]), int(self.group[index]), self.image, self.nested)

    def column(self, name: str) -> NDArray[Any]:
        """Read the values [images] of a column, row group after row group; a file is opened once."""
        if name in ("image", PATH_COLUMN):  # Parts of the image column, which a unit knows to take apart.
            return super().column(name)

        def read(file: int) -> NDArray[Any]:
            with storage.open_input(storage.join(self.root, self.names[file])) as opened:
                return _values(
                    pq.ParquetFile(opened, pre_buffer=True).read(columns=[name]).column(name), name
                )

        with ThreadPoolExecutor(READERS) as threads:
            return np.concatenate(list(threads.map(read, np.unique(self.file).tolist())))

    def kind_of(self, column: str) -> Kind:
        """Return the kind by the schema of the first file."""
        footer = _footer(storage.join(self.root, self.names[0]), int(self.sizes[0]))
        schema = footer.schema.to_arrow_schema()
        if column not in schema.names:  # A part of the image column.
            return super().kind_of(column)
        kind = schema.field(column).type
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return "whole"
        return "number" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "text"


def open_parquet(listing: Listing, *, option: str) -> tuple[ParquetManifest, str, tuple[str, ...]]:
    """Return the manifest of Parquet files, a summary, and warnings.

    Raises:
        UserError: For a file that is no Parquet, or has no image column.
    """
    arrays = cached("parquet", listing, lambda: _read_footers(listing, option))
    rows: NDArray[np.int32] = arrays["rows"]
    if not len(rows):
        raise UserError(
            f"{option}: the Parquet files under {listing.root} hold no rows", "give files that hold images"
        )
    about = json.loads(str(arrays["about"]))
    manifest = ParquetManifest(
        rows=rows,
        digest=listing_digest("parquet", listing.entries, rows),
        columns=tuple(about["columns"]),
        class_names=None if about["class_names"] is None else tuple(about["class_names"]),
        annotation_names=None if about["annotation_names"] is None else tuple(about["annotation_names"]),
        root=listing.root,
        names=tuple(entry.name for entry in listing.entries),
        sizes=np.array([entry.size for entry in listing.entries], np.int64),
        file=arrays["shard"],
        group=arrays["group"],
        image=about["image"],
        nested=about["nested"],
        names_of_columns={name: tuple(names) for name, names in about["names_of_columns"].items()},
    )
    summary = (
        f"{manifest.total:,} images in {len(rows):,} row groups of {len(listing.entries):,} Parquet files"
    )
    return manifest, summary, _warnings(manifest, arrays["bytes"], listing)


def _warnings(manifest: ParquetManifest, group_bytes: NDArray[np.int64], listing: Listing) -> tuple[str, ...]:
    found = []
    large = np.flatnonzero((manifest.rows > _MOST_ROWS) | (group_bytes > _MOST_BYTES))
    if len(large):
        worst = int(large[np.argmax(group_bytes[large])])
        found.append(
            f"{len(large):,} of {len(manifest.rows):,} row groups are large "
            f"({manifest.unit(worst).describe(0).rpartition(',')[0]}: {manifest.rows[worst]:,} rows, "
            f"{group_bytes[worst] / 2**20:,.0f} MiB); a task reads a row group at a time, so they cost "
            "memory and mixing: rewrite them with `beit data pack`"
        )
    return tuple(found)


def _read_footers(listing: Listing, option: str) -> dict[str, NDArray[Any]]:
    """Read what the manifest needs of all footers, side by side."""
    with ThreadPoolExecutor(READERS) as threads:
        footers = list(
            threads.map(lambda entry: _summarise(listing.uri(entry.name), option), listing.entries)
        )
    first = footers[0]
    for entry, footer in zip(listing.entries, footers, strict=True):
        if (footer["image"], footer["nested"]) != (first["image"], first["nested"]):
            raise UserError(
                (
                    f"{option}: {listing.uri(entry.name)} has its images in another column or form than "
                    f"{listing.entries[0].name}"
                ),
                "give files of one layout, for example with a glob",
            )
    common = [column for column in first["columns"] if all(column in footer["columns"] for footer in footers)]
    about = {
        "image": first["image"],
        "nested": first["nested"],
        "columns": common,
        **_names(first["names"], common),
    }
    flat = [
        (file, group, rows, size)
        for file, footer in enumerate(footers)
        for group, (rows, size) in enumerate(footer["groups"])
        if rows
    ]
    table = np.array(flat, np.int64).reshape(-1, 4)
    return {
        "shard": table[:, 0].astype(np.int32),
        "group": table[:, 1].astype(np.int32),
        "rows": table[:, 2].astype(np.int32),
        "bytes": table[:, 3],
        "about": np.array(json.dumps(about)),
    }


def _summarise(uri: str, option: str) -> dict[str, Any]:
    try:
        with storage.open_input(uri) as file:
            footer = pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{option}: {uri} is not a readable Parquet file ({str(error).splitlines()[0]})",
            "write it again or leave it out",
        ) from error
    schema = footer.schema.to_arrow_schema()
    image, nested = _image_column(schema, uri, option)
    pathed = nested and schema.field(image).type.get_field_index("path") >= 0
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    return {
        "image": image,
        "nested": nested,
        "columns": [
            "image",
            *([PATH_COLUMN] if pathed else []),
            *(name for name in schema.names if name not in (image, "image")),
        ],
        "names": _all_names(schema),
        "groups": [(group.num_rows, group.total_byte_size) for group in groups],
    }


def _image_column(schema: pa.Schema, uri: str, option: str) -> tuple[str, bool]:
    """Find the column with encoded images, and whether it is struct<bytes, …>."""
    forms = {field.name: _holds_bytes(field.type) for field in schema}
    suitable = [name for name, form in forms.items() if form is not None]
    named = [name for name in _IMAGE_COLUMNS if name in suitable]
    if not named and len(suitable) != 1:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(
            f"{option}: {uri} has no column of encoded images; its columns: {columns}",
            (
                "name the column `image`, as struct<bytes: binary, path: string> or as binary (or make "
                "shards with `beit data pack`)"
            ),
        )
    name = (named or suitable)[0]
    return name, forms[name] == "struct"


def _holds_bytes(kind: pa.DataType) -> str | None:
    if _is_binary(kind):
        return "binary"
    if (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    ):
        return "struct"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _all_names(schema: pa.Schema) -> dict[str, Any]:
    """Read the lists of names in a file's metadata: ours, and those that the Hugging Face library writes."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    given = {
        name: [str(value) for value in json.loads(metadata[name.encode()])]
        for name in _NAMES
        if name.encode() in metadata
    }
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    return {
        **given,
        "names_of_columns": {name: names for name, names in named.items() if isinstance(names, list)},
    }


def _names(found: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """Return the names of labels, and of ids in annotations. With annotations and no labels, `class_names`
    are those of the ids.
    """
    labels = first_label_column(columns)
    of_columns, of_all = found["names_of_columns"], found.get("class_names")
    of_ids = found.get("annotation_names", of_all if "annotation" in columns and labels is None else None)
    return {
        "class_names": of_all or of_columns.get(labels),
        "annotation_names": of_ids,
        "names_of_columns": of_columns,
    }
