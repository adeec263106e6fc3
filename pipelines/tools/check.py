"""`beit data check`: describe a data path, find broken images, and draw a contact sheet.

A random sample takes seconds and says enough about millions of images. To check all of them, Ray Data decodes
them on all cores of a cluster.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beit.checks import CommandConfig, NotNegativeInt, PositiveInt
from beit.config import ViewConfig
from beit.errors import UserError
from beit.images.decode import Status, decode
from beit.images.look import Look, look
from beit.images.pictures import contact_sheet
from beit.segmentation.annotations import BadAnnotation, read_ids
from pipelines import seeds, storage
from pipelines.cluster import session
from pipelines.command_line.options import parse
from pipelines.schemes import StoragePath
from pipelines.sources import Manifest, open_source
from pipelines.sources.annotations import ANNOTATION_COLUMN
from pipelines.sources.base import ChosenColumns, Columns, bytes_column
from pipelines.sources.pairs import with_annotations
from pipelines.sources.passed_over import PassedOver, describe
from pipelines.stream.first_look import value_warnings

_PERCENTILES = (0, 5, 50, 95, 100)
_SHEET_IMAGES = 60
_SHEET_UNITS = 20
_TASKS = 1000
_BROKEN_LISTED = 1000
_IDS_LISTED = 20
_RANGE_ENDS = (16, 32, 64, 128)
_RANGE_NAMES = ("< 1/16", "< 1/8", "< 1/4", "< 1/2", "more")
_LOOKED_AT: dict[str, Any] = {
    "width": np.int32,
    "height": np.int32,
    "format": "U12",
    "mode": "U12",
    "bits": np.int64,
    "low": np.int64,
    "high": np.int64,
    "frames": bool,
    "turned": bool,
    "turned_across": bool,
    "bad_exif": bool,
}
_NO_LABEL = "no label"


@dataclass(frozen=True, kw_only=True)
class CheckConfig(CommandConfig):
    """Describe a data path, find broken images, and draw a contact sheet."""

    source: str
    """Images to check: a folder, glob or bucket URI of image files, tars or Parquet shards."""

    image: str | None = None
    """Parquet column with the images, or the end of their names in tars, such as jpg. None: found by name and
    type."""

    sample: PositiveInt = 2000
    """Number of images to decode, drawn at random."""

    all: bool = False
    """Decode all images, on all of Ray's cores, not only a sample."""

    sheet: StoragePath | None = "check.png"
    """Path of the contact sheet. None: no contact sheet."""

    seed: NotNegativeInt = 0
    """Seed of the random sample."""

    annotations: str | None = None
    """Folder or glob of annotations, for image files that have them beside. The pixels of each id are
    counted."""

    view: ViewConfig = field(default_factory=ViewConfig)
    """How images are decoded; `max_pixels` says which are too large."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The findings of a check."""

    summary: str
    """A phrase that describes what the path holds."""
    images: int
    """Number of images of the source."""
    total_bytes: int
    """Size of the source's files."""
    checked: int
    """Number of images that were decoded or could not be decoded."""
    broken: tuple[tuple[str, Status], ...]
    """(place, reason) of images that cannot be decoded: the first thousand."""
    statuses: dict[Status, int]
    """Number of images with each status."""
    percentiles: dict[str, tuple[int, ...]]
    """"width", "height" (pixels) and "bytes" of the decoded images: smallest, 5%, median, 95%, largest."""
    formats: dict[str, int]
    """Number of images of each format, by Pillow's name such as JPEG, most frequent first."""
    modes: dict[str, int]
    """Number of images of each mode, by Pillow's name such as RGB or L, most frequent first."""
    classes: dict[str, int] | None
    """Number of checked images of each class; None without labels."""
    ranges: dict[str, tuple[int, ...]]
    """For images of each format and depth ("PNG of 16 bits"): the number whose brightest value is below 1/16,
    1/8, 1/4 and 1/2 of the range, and the number of the rest."""
    pixels: dict[int, int] | None
    """Number of pixels of each id in the annotations of the images checked; None without annotations."""
    bad_annotations: dict[str, int]
    """Number of annotations that cannot be used, by reason."""
    passed_over: PassedOver
    """Number of entries that are no images, by reason."""
    warnings: tuple[str, ...]
    sheet: str | None
    """Path of the contact sheet."""

    def lines(self) -> list[str]:
        """Format the findings as text."""
        decoded = self.statuses.get(Status.DECODED, 0)
        part = "all of them" if self.checked == self.images else f"{self.checked:,} drawn at random"
        text = [
            f"{self.summary}, {self.total_bytes / 2**30:,.2f} GiB",
            f"decoded {decoded:,} of {self.checked:,} ({part})",
        ]
        if line := describe(self.passed_over):
            text.insert(1, line)
        text += [f"  {count:,} {status.reason}" for status, count in sorted(self.statuses.items()) if status]
        text += [f"    {where}: {status.reason}" for where, status in self.broken[:10]]
        if len(self.broken) > 10:
            text.append("    …")
        for name, values in self.percentiles.items():
            text.append(
                f"{name:8}"
                + " / ".join(f"{value:,}" for value in values)
                + "   smallest / 5% / median / 95% / largest"
            )
        text.append("formats " + ", ".join(f"{name} {count:,}" for name, count in self.formats.items()))
        text.append("modes   " + ", ".join(f"{name} {count:,}" for name, count in self.modes.items()))
        if self.ranges:
            text.append("brightest value of an image, as a share of the range:")
            text.append(f"  {'':16}" + "".join(f"{name:>9}" for name in _RANGE_NAMES))
            text += [
                f"  {name:16}" + "".join(f"{count:9,}" for count in counts)
                for name, counts in self.ranges.items()
            ]
        if self.pixels is not None:
            every = max(1, sum(self.pixels.values()))
            text.append(
                f"annotation ids {len(self.pixels)}: "
                + ", ".join(
                    f"{value} {count:,} pixels ({count / every:.1%})"
                    for value, count in list(self.pixels.items())[:_IDS_LISTED]
                )
                + (", …" if len(self.pixels) > _IDS_LISTED else "")
            )
        text += [f"  {count:,} {reason}" for reason, count in self.bad_annotations.items()]
        if self.classes:
            text.append(_classes_line(self.classes))
        text += [f"warning: {warning}" for warning in self.warnings]
        if self.sheet is not None:
            text.append(f"contact sheet: {self.sheet}")
        return text


def check(config: CheckConfig) -> CheckResult:
    """Check a data path.

    Raises:
        UserError: If the path does not exist or holds no images.
    """
    source = open_source(config.source, option="source", columns=ChosenColumns(image=config.image))
    source = with_annotations(source, config.annotations, option="annotations")
    manifest = source.manifest
    if config.all:
        found = list(_inspect_all(manifest, config.view))
    else:
        drawn = draw_sample(manifest.rows, config.sample, config.seed)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = list(
                threads.map(lambda part: inspect(manifest, part[0], part[1], config.view), drawn.items())
            )
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    order = np.lexsort((columns["row"], columns["unit"]))
    columns = {name: column[order] for name, column in columns.items()}
    looks = _looks(columns)
    pixels, bad_annotations = _count_ids(columns)
    good = columns["status"] == 0
    broken = np.flatnonzero(~good)[:_BROKEN_LISTED]
    labels = columns.get("label")
    sheet = None
    if config.sheet is not None and good.any():
        _write_sheet(manifest, {name: column[good] for name, column in columns.items()}, config)
        sheet = config.sheet
    return CheckResult(
        summary=source.summary,
        images=manifest.total,
        total_bytes=source.total_bytes,
        checked=len(good),
        broken=tuple(
            (
                manifest.unit(int(columns["unit"][i])).describe(int(columns["row"][i])),
                Status(columns["status"][i]),
            )
            for i in broken
        ),
        statuses={
            Status(status): count for status, count in sorted(Counter(columns["status"].tolist()).items())
        },
        percentiles={name: _percentiles(columns[name][good]) for name in ("width", "height", "bytes")}
        if good.any()
        else {},
        formats=dict(Counter(columns["format"][good].tolist()).most_common()),
        modes=dict(Counter(columns["mode"][good].tolist()).most_common()),
        classes=None if labels is None else _count_classes(labels, manifest.class_names),
        ranges=_ranges(looks),
        pixels=pixels,
        bad_annotations=bad_annotations,
        warnings=(
            *source.warnings,
            *value_warnings(looks),
            *_annotation_warnings(pixels, looks, config.view),
        ),
        passed_over=manifest.passed_over,
        sheet=sheet,
    )


def draw_sample(rows: NDArray[np.int32], sample: int, seed: int) -> dict[int, NDArray[np.int64]]:
    """Draw the rows to check: a few rows from each of many units, since opening a unit costs about as much as
    reading it.

    Args:
        rows: int32 [U], rows of each unit.
        sample: Approximate number of rows to draw; all rows if there are fewer.
        seed: Seed of the draw.
    """
    rng = seeds.generator(seed, seeds.REPORT, 0, 0, 0)
    if rows.sum(dtype=np.int64) <= sample:
        return {unit: np.arange(count) for unit, count in enumerate(rows)}
    # About 32 rows per unit, if units have that many. Rows are drawn, not units, so that large units get
    # their share.
    ends = np.cumsum(rows, dtype=np.int64)
    many = max(8, sample // 32, int(1.5 * sample * len(rows) / ends[-1]))
    units = np.unique(np.searchsorted(ends, rng.integers(ends[-1], size=many), side="right"))
    inside = np.concatenate(
        [np.stack([np.full(rows[unit], unit), np.arange(rows[unit])], axis=1) for unit in units]
    )
    drawn = inside[rng.permutation(len(inside))[:sample]]
    return {int(unit): np.sort(drawn[drawn[:, 0] == unit, 1]) for unit in np.unique(drawn[:, 0])}


def inspect(manifest: Manifest, unit: int, rows: NDArray[np.int64], view: ViewConfig) -> Columns:
    """Decode some images of a unit; return a row for each with its place, properties and status."""
    label = manifest.label_column
    annotated = ANNOTATION_COLUMN in manifest.columns
    names = ("image", *(() if label is None else (label,)), *((ANNOTATION_COLUMN,) if annotated else ()))
    columns = manifest.unit(unit).read(rows, names)
    looks = [look(encoded, view) for encoded in columns["image"]]
    found: Columns = {
        "unit": np.full(len(rows), unit, np.int64),
        "row": np.asarray(rows, np.int64),
        "status": np.array([seen.status for seen in looks], np.uint8),
        "bytes": np.array([len(encoded) for encoded in columns["image"]], np.int64),
        **{
            name: np.array([getattr(seen, name) for seen in looks], kind) for name, kind in _LOOKED_AT.items()
        },
    }
    if annotated:
        counted = [
            _ids(annotation, seen, view)
            for annotation, seen in zip(columns[ANNOTATION_COLUMN], looks, strict=True)
        ]
        found["ids"] = bytes_column([ids for ids, _ in counted])
        found["annotation_fault"] = np.array([fault for _, fault in counted], "U100")
    return found | ({} if label is None else {"label": columns[label]})


def _ids(annotation: object, seen: Look, view: ViewConfig) -> tuple[bytes, str]:
    """The ids of an annotation and their pixels as the bytes of int64 [2, n]; and what is wrong with it."""
    if seen.status is not Status.DECODED:
        return b"", ""
    across = seen.turned_across and view.exif_rotate
    height, width = (seen.width, seen.height) if across else (seen.height, seen.width)
    try:
        ids = read_ids(annotation if isinstance(annotation, bytes) else b"", height=height, width=width)
    except BadAnnotation as problem:
        return b"", problem.status.reason
    return np.stack(np.unique(ids, return_counts=True)).astype(np.int64).tobytes(), ""


def _count_ids(columns: Columns) -> tuple[dict[int, int] | None, dict[str, int]]:
    """Pixels of each id over all annotations, and the number of annotations with each fault."""
    if "ids" not in columns:
        return None, {}
    pixels = Counter[int]()
    for packed in columns["ids"]:
        ids, counts = np.frombuffer(packed, np.int64).reshape(2, -1).tolist()
        pixels.update(dict(zip(ids, counts, strict=True)))
    faults = Counter(fault for fault in columns["annotation_fault"].tolist() if fault)
    return dict(sorted(pixels.items())), dict(faults.most_common())


def _annotation_warnings(
    pixels: dict[int, int] | None, looks: Sequence[Look], view: ViewConfig
) -> Iterator[str]:
    if pixels is None:
        return
    if set(pixels) == {0, 255}:
        yield (
            "annotations have the ids 0 and 255 only, and 255 is ignored by default: for masks of two "
            "classes train with --annotation.values 0 255"
        )
    turned = sum(seen.turned for seen in looks)
    if turned and view.exif_rotate:
        yield (
            f"{turned:,} of {len(looks):,} annotated images are turned by their EXIF orientation, their "
            "annotations are not: if these were drawn on the pixels as stored, set view.exif_rotate=False"
        )


def _looks(columns: Columns) -> list[Look]:
    """The looks that were taken apart into columns."""
    names = list(_LOOKED_AT)
    values = zip(*(columns[name].tolist() for name in names), strict=True)
    return [
        Look(status=Status(status), **dict(zip(names, each, strict=True)))
        for status, each in zip(columns["status"].tolist(), values, strict=True)
    ]


def _ranges(looks: Sequence[Look]) -> dict[str, tuple[int, ...]]:
    """Count images by their brightest value, for each format and depth."""
    counts: dict[str, NDArray[np.int64]] = {}
    for seen in looks:
        if seen.status is Status.DECODED:
            name = f"{seen.format} of {seen.bits} bits"
            counts.setdefault(name, np.zeros(len(_RANGE_NAMES), np.int64))
            counts[name][np.searchsorted(_RANGE_ENDS, seen.high, side="right")] += 1
    return {name: tuple(count.tolist()) for name, count in sorted(counts.items())}


def _inspect_all(manifest: Manifest, view: ViewConfig) -> Iterator[Columns]:
    import ray.data

    # All tasks of a node share one copy in the object store.
    shared = ray.put(manifest)
    ends = np.linspace(0, len(manifest.rows), min(_TASKS, len(manifest.rows)) + 1).astype(int)
    blocks = [pa.table({"first": [first], "last": [last]}) for first, last in pairwise(ends.tolist())]

    def look(batch: dict[str, NDArray[Any]]) -> Iterator[Columns]:
        manifest = ray.get(shared)
        for unit in range(int(batch["first"][0]), int(batch["last"][0])):
            yield inspect(manifest, unit, np.arange(manifest.rows[unit]), view)

    ray.data.DataContext.get_current().enable_progress_bars = False
    yield from (
        ray.data.from_blocks(blocks)
        .map_batches(look, batch_size=1, num_cpus=1)
        .iter_batches(batch_format="numpy", batch_size=None)
    )


def _percentiles(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.percentile(values, _PERCENTILES, method="nearest"))


def _as_key(label: Any) -> str | float | None:
    """Turn a label into a key for counting; None if there is no label."""
    if isinstance(label, str | int | float):
        return label if label == label else None
    return None if label is None else str(label)


def _count_classes(labels: NDArray[Any], names: tuple[str, ...] | None) -> dict[str, int]:
    """Count the images of each label; labels without images come last."""
    counts = Counter(_as_key(label) for label in labels.tolist())
    missing = counts.pop(None, 0)
    if names is not None:
        missing += counts.pop(-1, 0)  # So the hub marks the images of a test set.
    unlabelled = {_NO_LABEL: missing} if missing else {}
    if names is None:
        return {str(label): count for label, count in sorted(counts.items())} | unlabelled
    return {name: counts.get(label, 0) for label, name in enumerate(names)} | unlabelled


def _classes_line(classes: dict[str, int]) -> str:
    """Say how many classes there are, with how many images, and how many images have none."""
    missing = classes.get(_NO_LABEL, 0)
    counts = [count for name, count in classes.items() if name != _NO_LABEL]
    if any(counts):
        line = f"classes {len(counts):,}, with {min(counts):,} to {max(counts):,} of the images checked"
    else:
        line = f"classes {len(counts):,}, with no image that was checked"
    return line + (f"; {missing:,} without a label" if missing else "")


def _write_sheet(manifest: Manifest, columns: Columns, config: CheckConfig) -> None:
    """Draw some of the decoded images at random, and write them as one picture."""
    rng = seeds.generator(config.seed, seeds.REPORT, 0, 0, 1)
    units = rng.permutation(np.unique(columns["unit"]))[:_SHEET_UNITS]
    chosen = np.sort(rng.permutation(np.flatnonzero(np.isin(columns["unit"], units)))[:_SHEET_IMAGES])
    pictures: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for unit in np.unique(columns["unit"][chosen]):
        places = chosen[columns["unit"][chosen] == unit]
        pictures += [
            decode(encoded, config.view)
            for encoded in manifest.unit(int(unit)).read(columns["row"][places])["image"]
        ]
        for i in places:
            label = (
                int(columns["label"][i]) if "label" in columns and columns["label"].dtype.kind in "iu" else -1
            )
            names = manifest.class_names or ()
            captions.append(
                names[label] if 0 <= label < len(names) else f"{columns['width'][i]}x{columns['height'][i]}"
            )
    sheet = io.BytesIO()
    contact_sheet(pictures, columns=10, side=96, captions=captions).save(sheet, "PNG")
    assert config.sheet is not None
    storage.write_bytes(config.sheet, sheet.getvalue())


def command(arguments: list[str], debug: bool) -> None:
    """`beit data check PATH`."""
    config = parse(arguments, CheckConfig, command="data check PATH", positional=("source",))
    with session.start(debug=debug) if config.all else contextlib.nullcontext():
        result = check(config)
    for line in result.lines():
        print(line)
    if not result.statuses.get(Status.DECODED):
        raise UserError(
            f"none of the {result.checked:,} images checked can be decoded", "see the reasons above"
        )
