"""Parquet shards. A unit is a row group of one shard, or some neighbouring ones that are tiny."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
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
    ChosenColumns,
    Columns,
    Kind,
    Manifest,
    Rows,
    Unit,
    bytes_column,
    listing_digest,
)
from pipelines.sources.cache import cached
from pipelines.sources.columns import Form, Roles, Table, choose_columns, describe_schema, is_binary
from pipelines.sources.listing import Listing

_MOST_ROWS = 2000
_MOST_BYTES = 512 << 20

# Row groups are tiny where a file has at least this many, and on average fewer rows and bytes than these.
# Only those are merged: the units of a data set are part of its digest, which runs and token caches keep.
_TINY_GROUPS = 64
_TINY_ROWS = 8
_TINY_BYTES = 4 << 20

# Tiny row groups are merged up to so many rows and bytes.
_MERGED_ROWS = 128
_MERGED_BYTES = 64 << 20

# Arrow holds at most 2 GiB of a column's values in one piece. Row groups above this size are read in batches.
_AT_ONCE_BYTES = 1 << 30
_BATCH_BYTES = 128 << 20

# What Arrow raises when values come to more than one piece can hold.
_TOO_LARGE = (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowCapacityError)

# A footer is searched in this many bytes at the end of a file; a larger one is read by itself.
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class ParquetUnit(Unit):
    """One row group of one file, or several that follow each other."""

    uri: str
    size: int
    """Size of the file, in bytes."""
    first: int
    last: int
    """The row groups: from `first` up to, but not including, `last`."""
    files: dict[str, tuple[str, Form]]
    """Columns of encoded files: "image" and "annotation" -> the column's name in the file, and its form."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the row groups' asked columns and take rows of them."""
        wanted = [self._leaf(column) for column in columns]
        rows = np.asarray(rows, np.int64)
        with storage.open_input(self.uri) as opened:
            file = pq.ParquetFile(opened, metadata=_footer(self.uri, self.size), pre_buffer=True)
            groups = range(self.first, self.last)
            if _bytes_of(file.metadata, groups, wanted) <= _AT_ONCE_BYTES:
                try:
                    return self._columns(file.read_row_groups(list(groups), columns=wanted), rows, columns)
                except _TOO_LARGE:
                    pass  # More in memory than in the file: compressed, or each value stored only once.
            return self._read_in_batches(file, wanted, rows, columns)

    def _leaf(self, column: str) -> str:
        """Return what is read of the file for a column."""
        if column == PATH_COLUMN:
            return f"{self.files['image'][0]}.path"
        name, form = self.files.get(column, (column, ""))
        return f"{name}.bytes" if form == "struct" else name

    def _columns(self, table: pa.Table, rows: Rows, columns: Sequence[str]) -> Columns:
        """Take rows of a table that was read, as the columns that were asked for."""
        stored = {column: self._stored(column) for column in columns}
        taken = {name: _taken(table.column(name), rows) for name in set(stored.values())}
        return {column: _values(taken[name], column) for column, name in stored.items()}

    def _stored(self, column: str) -> str:
        return (
            self.files["image" if column == PATH_COLUMN else column][0] if self._is_file(column) else column
        )

    def _is_file(self, column: str) -> bool:
        return column == PATH_COLUMN or column in self.files

    def _read_in_batches(
        self, file: pq.ParquetFile, wanted: list[str], rows: Rows, columns: Sequence[str]
    ) -> Columns:
        """Read row groups of which Arrow cannot hold a column in one piece."""
        groups = range(self.first, self.last)
        total = sum(file.metadata.row_group(group).num_rows for group in groups)
        batch = max(1, total * _BATCH_BYTES // max(1, _bytes_of(file.metadata, groups, wanted)))
        batch = min(batch, max(1, total // 2))
        while True:
            try:
                return self._batches(file, wanted, rows, columns, batch)
            except _TOO_LARGE:
                if batch == 1:
                    raise
                batch = max(1, batch // 4)

    def _batches(
        self, file: pq.ParquetFile, wanted: list[str], rows: Rows, columns: Sequence[str], batch: int
    ) -> Columns:
        order = np.argsort(rows, kind="stable")
        ordered, start, parts = rows[order], 0, list[Columns]()
        for read in file.iter_batches(
            batch_size=batch, row_groups=list(range(self.first, self.last)), columns=wanted
        ):
            low, high = np.searchsorted(ordered, [start, start + len(read)])
            if low < high or not parts:  # The first one at least, for the types.
                parts.append(self._columns(pa.Table.from_batches([read]), ordered[low:high] - start, columns))
            start += len(read)
            if high == len(ordered):
                break
        back = np.argsort(order)
        return {column: np.concatenate([part[column] for part in parts])[back] for column in columns}

    def describe(self, row: int) -> str:
        """File, row group and row."""
        if self.last - self.first == 1:
            return f"{self.uri}, row group {self.first}, row {row}"
        return f"{self.uri}, row groups {self.first} to {self.last - 1}, row {row} of them"


def _bytes_of(footer: pq.FileMetaData, groups: range, wanted: Sequence[str]) -> int:
    """Return how many bytes the asked columns of row groups hold, uncompressed."""
    total = 0
    for number in groups:
        group = footer.row_group(number)
        if group.total_byte_size <= _AT_ONCE_BYTES // len(groups):
            total += group.total_byte_size
            continue
        for column in map(group.column, range(group.num_columns)):
            path = column.path_in_schema
            if any(path == name or path.startswith(f"{name}.") for name in wanted):
                total += column.total_uncompressed_size
    return total


def _taken(column: pa.ChunkedArray, rows: Rows) -> pa.ChunkedArray:
    """Take rows of a column."""
    return _plain(column).take(pa.array(rows, pa.int64()))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn views of bytes and text into plain ones: Arrow cannot take rows of them."""
    kind = _without_views(column.type)
    return column if kind == column.type else column.cast(kind)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Return the type with plain bytes and text in place of views."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return pa.large_string() if pa.types.is_string_view(kind) else kind


def _values(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    """Return the values [n] of a column; encoded files as bytes."""
    if name == PATH_COLUMN:
        return np.array([(value or {}).get("path") or "" for value in column.to_pylist()], object)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return bytes_column([None if value is None else value["bytes"] for value in column.to_pylist()])
    if is_binary(column.type) or (pa.types.is_null(column.type) and name in ("image", "annotation")):
        return bytes_column(column.to_pylist())
    if pa.types.is_dictionary(column.type):  # As it is, a null would become the last name.
        column = column.cast(column.type.value_type)
    return np.asarray(column.to_numpy())


@functools.lru_cache(maxsize=16)
def _footer(uri: str, size: int) -> pq.FileMetaData:
    # Kept for the process: a shard's footer can be megabytes, and its row groups come one by one.
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
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    """int32 [U]: the row groups of each unit in its file, from `first` up to, but not including, `last`."""
    tables: tuple[Table, ...]
    """What the schemas say; most data have one."""
    table: NDArray[np.int32]
    """int32 [files]: the schema of each file in `tables`."""
    roles: Roles
    """Which columns hold images, labels and annotations."""
    names_of_columns: dict[str, tuple[str, ...]]
    """Names of the numbers in label columns, as the Hugging Face library writes them."""

    @property
    def label_column(self) -> str | None:
        """The column that the user names, or the first of `LABEL_COLUMNS` that holds labels."""
        return self.roles.label

    def names_of(self, column: str) -> tuple[str, ...] | None:
        """Return the column's own names; `class_names` belong to the label column, or to any column if there
        is none.
        """
        own = self.class_names if column == (self.label_column or column) else None
        return own if own is not None else self.names_of_columns.get(column)

    def unit(self, index: int) -> ParquetUnit:
        """A row group, or some tiny ones, by its number."""
        file = int(self.file[index])
        forms = self.tables[self.table[file]].forms
        columns = {"image": self.roles.image, "annotation": self.roles.annotation}
        return ParquetUnit(
            storage.join(self.root, self.names[file]),
            int(self.sizes[file]),
            int(self.first[index]),
            int(self.last[index]),
            {what: (name, forms[name]) for what, name in columns.items() if name is not None},
        )

    def column(self, name: str) -> NDArray[Any]:
        """Read the values [images] of a column, row group after row group; a file is opened once."""
        if name in ("image", PATH_COLUMN, "annotation"):  # A unit knows where they lie.
            return super().column(name)

        def read(file: int) -> NDArray[Any]:
            with storage.open_input(storage.join(self.root, self.names[file])) as opened:
                column = pq.ParquetFile(opened, pre_buffer=True).read(columns=[name]).column(name)
                return _values(_plain(column), name)

        with ThreadPoolExecutor(READERS) as threads:
            return np.concatenate(list(threads.map(read, np.unique(self.file).tolist())))

    def conflict_of(self, column: str) -> str | None:
        """Name two files whose values of a column are of other kinds."""
        found: dict[str, int] = {}
        for file, table in enumerate(self.table.tolist()):
            kind = self.tables[table].kinds.get(column, "null")
            if kind != "null":
                found.setdefault("a number" if kind in ("whole", "number") else kind, file)
        if len(found) < 2:
            return None
        (_, one), (_, other) = itertools.islice(found.items(), 2)
        said = [
            f"{self.tables[self.table[file]].types[column]} in {storage.join(self.root, self.names[file])}"
            for file in (one, other)
        ]
        return f"the column {column} is {said[0]} and {said[1]}"

    def kind_of(self, column: str) -> Kind:
        """Return the kind by the schemas of all files; one without values has none."""
        kinds = {table.kinds.get(column, "null") for table in self.tables} - {"null"}
        if kinds == {"whole"}:
            return "whole"
        return "number" if kinds and kinds <= {"whole", "number"} else "text"


def open_parquet(
    listing: Listing, *, option: str, columns: ChosenColumns | None = None
) -> tuple[ParquetManifest, str, tuple[str, ...]]:
    """Return the manifest of Parquet files, a summary, and warnings.

    Args:
        listing: The files.
        option: Name of the option that the files were given with, for messages.
        columns: Columns that the user names.

    Raises:
        UserError: For a file that is no Parquet, or has no image column, or no image at all.
    """
    arrays = cached("parquet", listing, lambda: _read_footers(listing, option))
    groups = arrays["groups"]
    if not len(groups):
        raise UserError(
            f"{option}: the Parquet files under {listing.root} hold no rows", "give files that hold images"
        )
    about = json.loads(str(arrays["about"]))
    tables = tuple(Table(**table) for table in about["tables"])
    example = [listing.uri(listing.entries[file].name) for file in about["first_files"]]
    roles = choose_columns(tables, example, option=option, chosen=columns or ChosenColumns())
    units = _units(groups)
    rows = units[:, 3].astype(np.int32)
    digest = listing_digest("parquet", listing.entries, rows)
    if roles.unusual:
        digest = hashlib.blake2b(f"{digest}\0image\0{roles.image}".encode(), digest_size=16).hexdigest()
    manifest = ParquetManifest(
        rows=rows,
        digest=digest,
        columns=roles.columns,
        class_names=roles.class_names,
        annotation_names=roles.annotation_names,
        content=about["content"],
        root=listing.root,
        names=tuple(entry.name for entry in listing.entries),
        sizes=np.array([entry.size for entry in listing.entries], np.int64),
        file=units[:, 0].astype(np.int32),
        first=units[:, 1].astype(np.int32),
        last=units[:, 2].astype(np.int32),
        tables=tables,
        table=arrays["table"],
        roles=roles,
        names_of_columns=roles.names_of_columns,
    )
    missing = _missing(manifest, groups, about["nulls"])
    _check_any_bytes(manifest, missing, listing, option)
    summary = (
        f"{manifest.total:,} images in {len(groups):,} row groups of {len(listing.entries):,} Parquet files"
    )
    return manifest, summary, tuple(_warnings(manifest, groups, units, missing))


def _units(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 [U, 5] file, first group, group behind the last, rows and bytes of each unit; `groups` is
    int64 [G, 4] file, group, rows and bytes of each row group that has rows.
    """
    alone = np.stack([groups[:, 0], groups[:, 1], groups[:, 1] + 1, groups[:, 2], groups[:, 3]], axis=1)
    _, starts, counts = np.unique(groups[:, 0], return_index=True, return_counts=True)
    rows, size = np.add.reduceat(groups[:, 2], starts), np.add.reduceat(groups[:, 3], starts)
    tiny = (counts >= _TINY_GROUPS) & (rows < _TINY_ROWS * counts) & (size < _TINY_BYTES * counts)
    if not tiny.any():
        return alone
    parts = []
    for start, count, merge in zip(starts.tolist(), counts.tolist(), tiny.tolist(), strict=True):
        of_file = alone[start : start + count]
        parts.append(_merged(of_file) if merge else of_file)
    return np.concatenate(parts)


def _merged(alone: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge the row groups of a file, neighbour to neighbour."""
    units: list[list[int]] = []
    for file, first, last, rows, size in alone.tolist():
        if units and units[-1][3] + rows <= _MERGED_ROWS and units[-1][4] + size <= _MERGED_BYTES:
            units[-1][2:] = [last, units[-1][3] + rows, units[-1][4] + size]
        else:
            units.append([file, first, last, rows, size])
    return np.array(units, np.int64)


def _missing(manifest: ParquetManifest, groups: NDArray[np.int64], nulls: list[dict[str, int]]) -> int:
    """Return how many images have no bytes, as far as the footers tell."""
    files = np.bincount(groups[:, 0], groups[:, 2], minlength=len(manifest.table))
    null = [manifest.tables[table].forms[manifest.roles.image] == "null" for table in manifest.table]
    told = sum(found.get(manifest.roles.image, 0) for found in nulls)
    return int(files[null].sum()) + told


def _check_any_bytes(manifest: ParquetManifest, missing: int, listing: Listing, option: str) -> None:
    """Refuse data without a single image, and say what is there instead."""
    if missing < manifest.total:
        return
    image = manifest.roles.image
    pathed = PATH_COLUMN in manifest.columns
    path = manifest.unit(0).read(np.arange(1), (PATH_COLUMN,))[PATH_COLUMN][0] if pathed else ""
    there = f"; there are paths only, such as {path}" if path else ""
    raise UserError(
        f"{option}: no image under {listing.root} has bytes: the column {image} is null in all "
        f"{manifest.total:,} rows{there}",
        "give the folder of the files themselves, or write the shards again with the bytes in them"
        if there
        else "write the shards again with the bytes of the images in them",
    )


def _warnings(
    manifest: ParquetManifest, groups: NDArray[np.int64], units: NDArray[np.int64], missing: int
) -> Iterator[str]:
    rows, size = units[:, 3], units[:, 4]
    large = np.flatnonzero((rows > _MOST_ROWS) | (size > _MOST_BYTES))
    if len(large):
        worst = int(large[np.argmax(size[large])])
        yield (
            f"{len(large):,} of {len(manifest.rows):,} row groups are large "
            f"({manifest.unit(worst).describe(0).rpartition(',')[0]}: {rows[worst]:,} rows, "
            f"{size[worst] / 2**20:,.0f} MiB); a task reads a row group at a time, so they cost "
            "memory and mixing: rewrite them with `beit data pack`"
        )
    if len(units) < len(groups):
        yield (
            f"the row groups are tiny, {manifest.total / len(groups):.1f} images each on average: neighbours "
            f"are read together, about {manifest.total / len(units):.0f} images at a time, but footers of so "
            "many are slow to read: rewrite them with `beit data pack`"
        )
    if missing:
        yield (
            f"{missing:,} of {manifest.total:,} images have no bytes: the column {manifest.roles.image} is "
            "null there, as after downloads that failed; they count as broken images, and `beit data pack` "
            "leaves them out"
        )
    if manifest.roles.conflicting and (conflict := manifest.conflict_of(manifest.roles.conflicting)):
        yield f"{conflict}: they are not read as labels; write them with one type"


def _read_footers(listing: Listing, option: str) -> dict[str, NDArray[Any]]:
    """Read what the manifest needs of all footers, side by side."""
    with ThreadPoolExecutor(READERS) as threads:
        footers = list(
            threads.map(lambda entry: _summarise(listing.uri(entry.name), option), listing.entries)
        )
    tables: dict[str, int] = {}
    table = [tables.setdefault(json.dumps(footer["table"]), len(tables)) for footer in footers]
    state = hashlib.blake2b(digest_size=16)
    for footer in footers:
        state.update(footer["digest"])
    about = {
        "tables": [json.loads(text) for text in tables],
        "first_files": [table.index(number) for number in range(len(tables))],
        "nulls": [footer["nulls"] for footer in footers],
        "content": state.hexdigest(),
    }
    flat = [
        (file, group, rows, size)
        for file, footer in enumerate(footers)
        for group, (rows, size) in enumerate(footer["groups"])
        if rows
    ]
    return {
        "groups": np.array(flat, np.int64).reshape(-1, 4),
        "table": np.array(table, np.int32),
        "about": np.array(json.dumps(about)),
    }


def _summarise(uri: str, option: str) -> dict[str, Any]:
    try:
        content = _footer_bytes(uri)
        footer = pq.read_metadata(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{option}: {uri} is not a readable Parquet file ({str(error).splitlines()[0]})",
            "write it again or leave it out",
        ) from error
    table = describe_schema(footer.schema.to_arrow_schema())
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    return {
        "table": vars(table),
        "groups": [(group.num_rows, group.total_byte_size) for group in groups],
        "nulls": _nulls(footer, table),
        "digest": hashlib.blake2b(content, digest_size=16).digest(),
    }


def _footer_bytes(uri: str) -> bytes:
    """Read the footer of a file, with the length and the mark behind it."""
    with storage.open_input(uri) as file:
        size = file.size()
        tail = bytes(file.read_at(min(size, _TAIL_BYTES), size - min(size, _TAIL_BYTES)))
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail) and length <= size:
            tail = bytes(file.read_at(length, size - length))
    return tail[-length:] if length <= len(tail) else tail


def _nulls(footer: pq.FileMetaData, table: Table) -> dict[str, int]:
    """Count the missing values of each column of encoded files, as far as the statistics tell."""
    if not footer.num_row_groups:
        return {}
    first = footer.row_group(0)
    places = {first.column(place).path_in_schema: place for place in range(first.num_columns)}
    found = {}
    for name, form in table.forms.items():
        place = places.get(f"{name}.bytes" if form == "struct" else name)
        if form in ("binary", "struct") and place is not None:
            chunks = (footer.row_group(group).column(place) for group in range(footer.num_row_groups))
            told = (chunk.statistics for chunk in chunks if chunk.is_stats_set)
            found[name] = sum(one.null_count for one in told if one is not None and one.has_null_count)
    return {name: count for name, count in found.items() if count}
