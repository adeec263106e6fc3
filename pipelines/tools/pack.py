"""`beit data pack`: copy images from class folders, flat folders, tars (including ILSVRC's tars of tars) or
Parquet into shuffled Parquet shards.

The driver plans which image goes to which shard: a seeded permutation of all images. Each task then reads the
images of its shards, wherever they lie, and writes the shards. The plan depends only on the source and the
configuration, and a shard appears under its name only when complete. So a job that was killed writes the
missing shards when it is started again, and the result is the same.

Files and members of tars are read one by one, so all images are shuffled together. A row group of Parquet has
to be read whole. So that each is read only once, Parquet is shuffled in windows: row groups drawn from the
whole source, as many as fit into `window_mib`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.checks import CommandConfig, FileName, NotNegativeInt, PositiveInt
from beit.errors import UserError
from pipelines import seeds, storage
from pipelines.cluster import session
from pipelines.command_line.options import parse
from pipelines.parts.store import PartStore
from pipelines.schemes import StoragePath
from pipelines.sources import Manifest, Source, open_source
from pipelines.sources.base import PATH_COLUMN, ChosenColumns, Columns, Kind

# Most bytes of a row group, which a task reads at once. Arrow could not hold 2 GiB in one piece.
GROUP_BYTES = 512 << 20

PLAN_FILE = "pack.json"
"""File next to the shards that says what they were made from."""


@dataclass(frozen=True, kw_only=True)
class PackConfig(CommandConfig):
    """Copy images into shuffled Parquet shards."""

    source: str
    """Images to pack: a folder, glob or bucket URI of image files, tars or Parquet shards."""

    out: StoragePath
    """Folder or bucket URI for the shards. An unfinished one is completed."""

    list: StoragePath | None = None
    """File that chooses images of a folder and may label them: a .txt with a path in each line, or a .csv
    with the columns path and label. Paths are relative to `source`. None: all images."""

    image: str | None = None
    """Parquet column with the images, or the end of their names in tars, such as jpg. None: found by name and
    type."""

    label: str | None = None
    """Parquet column that becomes `label`. None: the first that exists of label, labels, class, target,
    fine_label and cls."""

    annotation: str | None = None
    """Parquet column that becomes `annotation`. None: annotation, or a column of masks such as mask or
    label."""

    split: FileName = "train"
    """First part of the shards' names, such as train-00000-of-00560.parquet. If the source has several
    splits, such as train-* and val-*, only this one is packed."""

    seed: NotNegativeInt = 0
    """Seed of the shuffle."""

    shard_mib: PositiveInt = 256
    """Approximate size of a shard, in MiB. A task holds a whole shard in memory, and more than that while it
    writes."""

    rows_per_group: PositiveInt = 128
    """Number of images in a row group, which is the smallest unit that training reads."""

    window_mib: PositiveInt = 1024
    """Parquet sources only: amount of data that is shuffled together, in MiB. A task holds it in memory, and
    more than that while it writes."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The shards in the folder."""

    out: str
    images: int
    """Images of the source."""
    shards: int
    written: int
    """Shards that this call wrote; the others existed before."""
    empty: int
    """Images without bytes, which this call has left out."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Describes what shards were made from. Fields without a docstring are options of `PackConfig`."""

    source: str
    """Digest of the source's manifest."""

    images: int
    shards: int
    """How many there are."""

    split: str
    seed: int
    shard_mib: int
    rows_per_group: int
    window_mib: int


@dataclass(frozen=True)
class Shards(PartStore[Packing]):
    """The shards of a packing; some may still be missing."""

    description_files: ClassVar[tuple[str, ...]] = (PLAN_FILE,)
    what: ClassVar[str] = f"{PLAN_FILE} of an earlier packing"
    mismatch: ClassVar[str] = "holds another packing"

    @property
    def parts(self) -> int:
        """How many shards there are."""
        return self.description.shards

    def name(self, part: int) -> str:
        """File name of a shard."""
        return f"{self.description.split}-{part:05d}-of-{self.parts:05d}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The shard and row of every image. Images are numbered consecutively, unit by unit."""

    order: NDArray[np.int64]
    """int64 [images]: the images in the order of the shards."""

    bounds: NDArray[np.int64]
    """int64 [shards + 1]: where each shard begins in `order`."""

    tasks: NDArray[np.int64]
    """int64 [tasks + 1]: the first shard of each task."""


def plan_shards(rows: NDArray[np.int32], *, shard_rows: int, window_rows: int | None, seed: int) -> Plan:
    """Plan the shards. A pure function; it needs one number per image.

    Args:
        rows: int32 [U], images of each unit.
        shard_rows: Approximate number of images in a shard.
        window_rows: Approximate number of images in a window; units are read whole and shuffled within
            windows. None: all images are shuffled together.
        seed: Seed of the permutations.
    """
    rng = seeds.generator(seed, seeds.ORDER, 0, 0, 0)
    total = int(rows.sum(dtype=np.int64))
    if window_rows is None:
        shards = max(1, round(total / shard_rows))
        return Plan(
            order=rng.permutation(total),
            bounds=np.arange(shards + 1) * total // shards,
            tasks=np.arange(shards + 1),
        )
    units = rng.permutation(len(rows))
    ends = np.cumsum(rows[units], dtype=np.int64)
    windows = max(1, round(total / max(window_rows, shard_rows)))
    window = (ends - 1) * windows // total
    starts = np.cumsum(rows, dtype=np.int64) - rows
    order, bounds, tasks = [], [0], [0]
    for number in np.unique(window):
        inside = units[window == number]
        images = rng.permutation(
            np.concatenate([np.arange(starts[unit], starts[unit] + rows[unit]) for unit in inside])
        )
        shards = max(1, round(len(images) / shard_rows))
        bounds += (bounds[-1] + np.arange(1, shards + 1) * len(images) // shards).tolist()
        order.append(images)
        tasks.append(len(bounds) - 1)
    return Plan(order=np.concatenate(order), bounds=np.array(bounds), tasks=np.array(tasks))


def pack(
    config: PackConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> PackResult:
    """Write the missing shards, on all of Ray's cores.

    Args:
        config: What to pack.
        progress: Called after each task with the number of finished shards and of all shards.
        say: Takes the lines for the user, such as warnings about the source.

    Raises:
        UserError: If the source holds no images, or `out` holds something else.
    """
    source = open_source(
        config.source,
        option="source",
        split=config.split,
        columns=ChosenColumns(image=config.image, label=config.label, annotation=config.annotation),
        chosen=config.list,
        say=say,
    )
    for line in _columns_line(source.manifest):
        say(line)
    if storage.lies_in(config.out, config.source):
        raise UserError(
            f"out={config.out} lies in source={config.source}: the shards would become part of it",
            "give a folder elsewhere",
        )
    plan = _plan(source, config)
    shards = len(plan.bounds) - 1
    store = Shards(storage.absolute(config.out), _made_from(source.manifest, config, shards))
    store.begin()
    missing = np.zeros(shards, np.bool_)
    missing[store.missing()] = True
    tasks = [
        task for task in range(len(plan.tasks) - 1) if missing[plan.tasks[task] : plan.tasks[task + 1]].any()
    ]
    done, empty = shards - int(missing.sum()), 0
    if tasks:
        for finished, left_out in _run(source.manifest, plan, store, missing, tasks):
            done, empty = done + finished, empty + left_out
            if progress is not None:
                progress(done, shards)
    if empty:
        say(f"left out: {empty:,} images without bytes, such as those of downloads that failed")
    return PackResult(
        out=store.path,
        images=source.manifest.total,
        shards=shards,
        written=int(missing.sum()),
        empty=empty,
    )


def _plan(source: Source, config: PackConfig) -> Plan:
    manifest = source.manifest
    image_bytes = max(1.0, source.total_bytes / manifest.total)
    shard_rows = max(1, round(config.shard_mib * 2**20 / image_bytes))
    window_rows = (
        max(1, round(config.window_mib * 2**20 / image_bytes)) if manifest.kind == "parquet" else None
    )
    return plan_shards(manifest.rows, shard_rows=shard_rows, window_rows=window_rows, seed=config.seed)


def _made_from(manifest: Manifest, config: PackConfig, shards: int) -> Packing:
    return Packing(
        source=manifest.digest,
        images=manifest.total,
        shards=shards,
        split=config.split,
        seed=config.seed,
        shard_mib=config.shard_mib,
        rows_per_group=config.rows_per_group,
        window_mib=config.window_mib,
    )


def _run(
    manifest: Manifest,
    plan: Plan,
    store: Shards,
    missing: NDArray[np.bool_],
    tasks: list[int],
) -> Iterator[tuple[int, int]]:
    """Yield the shards that each task wrote, and the images that it left out, as tasks finish."""
    import ray.data

    # All tasks of a node share one copy in the object store, instead of one in the description of every task.
    shared = ray.put((manifest, plan))
    blocks = [pa.table({"task": [task]}) for task in tasks]

    def write(batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        manifest, plan = ray.get(shared)
        task = int(batch["task"][0])
        wanted = [shard for shard in range(plan.tasks[task], plan.tasks[task + 1]) if missing[shard]]
        places = {shard: storage.join(store.path, store.name(shard)) for shard in wanted}
        empty = write_shards(manifest, plan, places, rows_per_group=store.description.rows_per_group)
        return {"written": np.array([len(wanted)]), "empty": np.array([empty])}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for row in ray.data.from_blocks(blocks).map_batches(write, batch_size=1, num_cpus=1).iter_rows():
        yield int(row["written"]), int(row["empty"])


def write_shards(manifest: Manifest, plan: Plan, places: dict[int, str], *, rows_per_group: int) -> int:
    """Read the images of some shards together, and write the shards.

    Args:
        manifest: The source of the images.
        plan: Which images go into which shard.
        places: Number of a shard -> path of its file.
        rows_per_group: Images of a row group; there are fewer where these come to more than `GROUP_BYTES`.

    Returns:
        Number of images without bytes, which are left out.
    """
    labels = manifest.label_column
    kept = tuple(name for name in (PATH_COLUMN, labels, "annotation") if name in manifest.columns)
    spans = {shard: plan.order[plan.bounds[shard] : plan.bounds[shard + 1]] for shard in places}
    columns = gather(manifest, np.concatenate(list(spans.values())), ("image", *kept))
    kind = None if labels is None else manifest.kind_of(labels)
    if labels is not None:
        columns["label"] = columns.pop(labels)
    names = {"class_names": manifest.class_names, "annotation_names": manifest.annotation_names}
    metadata = {name: json.dumps(values) for name, values in names.items() if values is not None}
    sizes = np.array([len(image) for image in columns["image"]], np.int64)
    start = 0
    for shard, images in spans.items():
        rows = start + np.flatnonzero(sizes[start : start + len(images)])
        start += len(images)
        with storage.open_output(places[shard]) as file:
            writer: pq.ParquetWriter | None = None
            for group in _groups(rows, sizes, rows_per_group) or [rows]:
                table = _table({name: column[group] for name, column in columns.items()}, metadata, kind)
                # Encoded images cannot be compressed any further.
                writer = writer or pq.ParquetWriter(
                    file, table.schema, compression="none", use_dictionary=False
                )
                writer.write_table(table)
            if writer is not None:
                writer.close()
    return int((sizes == 0).sum())


def _groups(rows: NDArray[np.int64], sizes: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Divide rows into row groups of at most `most` images and `GROUP_BYTES`, but at least one image."""
    groups, first, size = list[NDArray[np.int64]](), 0, 0
    for place, row in enumerate(rows.tolist()):
        if place > first and (place - first == most or size + sizes[row] > GROUP_BYTES):
            groups.append(rows[first:place])
            first, size = place, 0
        size += int(sizes[row])
    return [*groups, rows[first:]] if len(rows) else []


def _columns_line(manifest: Manifest) -> list[str]:
    """Describe in a line which columns are renamed or left out."""
    labels = manifest.label_column
    left = [name for name in manifest.columns if name not in ("image", PATH_COLUMN, labels, "annotation")]
    renamed = f"the column {labels} becomes label" if labels not in (None, "label") else ""
    dropped = f"left out: {', '.join(left)}" if left else ""
    return [f"columns: {'; '.join(filter(None, (renamed, dropped)))}"] if renamed or dropped else []


def gather(manifest: Manifest, images: NDArray[np.int64], columns: tuple[str, ...]) -> Columns:
    """Read images by their numbers, and return them in this order. Each unit is read once, several units at a
    time.
    """
    ends = np.cumsum(manifest.rows, dtype=np.int64)
    unit = np.searchsorted(ends, images, side="right")
    row = images - (ends - manifest.rows)[unit]
    by_unit = np.argsort(unit, kind="stable")
    groups = np.split(by_unit, np.flatnonzero(np.diff(unit[by_unit])) + 1)
    read = functools.partial(_read, manifest, unit, row, columns)
    with ThreadPoolExecutor(4 if manifest.kind == "parquet" else 16) as threads:
        parts = list(threads.map(read, groups))
    order = np.argsort(by_unit)
    # The units' columns are joined, not written into an array of the first unit's type: a column with missing
    # values has another type.
    return {name: np.concatenate([part[name] for part in parts])[order] for name in columns}


def _read(
    manifest: Manifest,
    unit: NDArray[np.int64],
    row: NDArray[np.int64],
    columns: tuple[str, ...],
    places: NDArray[np.int64],
) -> Columns:
    return manifest.unit(int(unit[places[0]])).read(row[places], columns)


def _table(columns: Columns, metadata: dict[str, str], kind: Kind | None) -> pa.Table:
    """Build one row group in the layout of Hugging Face's hub; `kind` is the type of the labels, if there are
    any.
    """
    encoded = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    paths = columns.get(PATH_COLUMN, np.full(len(columns["image"]), None))
    fields: dict[str, pa.Array] = {"image": _files(columns["image"], paths, encoded)}
    if kind == "whole":  # With nulls among them, integers come as floats, and booleans as objects.
        fields["label"] = pa.array(columns["label"].tolist(), from_pandas=True).cast(pa.int64())
    elif kind is not None:
        fields["label"] = pa.array(columns["label"].tolist(), from_pandas=True)
        if pa.types.is_null(fields["label"].type):  # All are missing in this row group.
            fields["label"] = fields["label"].cast(pa.string() if kind == "text" else pa.float64())
    if "annotation" in columns:
        fields["annotation"] = _files(columns["annotation"], np.full(len(columns["image"]), None), encoded)
    schema = pa.schema({name: column.type for name, column in fields.items()}, metadata=metadata)
    return pa.Table.from_arrays(list(fields.values()), schema=schema)


def _files(contents: NDArray[Any], paths: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.StructArray.from_arrays(
        [pa.array(contents.tolist(), pa.binary()), pa.array(paths.tolist(), pa.string())],
        fields=[kind.field("bytes"), kind.field("path")],
    )


def command(arguments: list[str], debug: bool) -> None:
    """`beit data pack SRC OUT`."""
    config = parse(arguments, PackConfig, command="data pack SRC OUT", positional=("source", "out"))
    with session.start(debug=debug):
        result = pack(config, progress=lambda done, shards: print(f"{done:,}/{shards:,} shards", flush=True))
    print(
        f"{result.images - result.empty:,} images in {result.shards:,} shards ({result.written:,} written "
        f"now): {result.out}"
    )
