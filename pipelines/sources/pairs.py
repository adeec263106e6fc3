"""Annotations in a folder of their own, as in ADE20K (images/training and annotations/training) and in
Cityscapes (leftImg8bit and gtFine).

An annotation has the same path in its folder as the image has in the folder of the images, but ends in .png.
If no two paths agree, the ending that the names of all images share is ignored, and so is that of all
annotations: a_leftImg8bit.png and a_gtFine_labelTrainIds.png both become a.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import pyarrow as pa

from beit.errors import UserError
from pipelines import storage
from pipelines.sources.annotations import ANNOTATION_COLUMN
from pipelines.sources.base import Columns, Manifest, Rows, Source, Unit, bytes_column, listing_digest
from pipelines.sources.folder import ROWS_PER_UNIT, FolderManifest, FolderUnit, read_start
from pipelines.sources.listing import find_files
from pipelines.sources.passed_over import added, by_ending, describe, ending_of


@dataclass(frozen=True, eq=False)
class PairedUnit(Unit):
    """Some image files, each with the file of its annotation."""

    images: FolderUnit
    root: str
    names: bytes
    """Paths of the annotations below the root, joined by zero bytes."""

    def read(self, rows: Rows, columns: Sequence[str] = ("image",)) -> Columns:
        """Read the asked files, several at a time."""
        found = self.images.read(rows, [column for column in columns if column != ANNOTATION_COLUMN])
        if ANNOTATION_COLUMN in columns:
            names = self.names.split(b"\0")
            uris = [storage.join(self.root, os.fsdecode(names[row])) for row in rows]
            with ThreadPoolExecutor(max(1, min(16, len(uris)))) as threads:
                found[ANNOTATION_COLUMN] = bytes_column(list(threads.map(read_start, uris)))
        return found

    def describe(self, row: int) -> str:
        """Path of the image."""
        return self.images.describe(row)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedManifest(Manifest):
    """A folder's manifest, with one more path for each image."""

    kind: ClassVar[str] = "folder with annotations"

    images: FolderManifest
    root: str
    """Folder of the annotations."""
    names: pa.LargeBinaryArray
    """Paths of the annotations below the root, in the order of the images."""

    def unit(self, index: int) -> PairedUnit:
        """A slice of the list by its number."""
        names = self.names.slice(index * ROWS_PER_UNIT, ROWS_PER_UNIT).to_pylist()
        return PairedUnit(self.images.unit(index), self.root, b"\0".join(names))


def with_annotations(
    source: Source, path: str | None, *, option: str, say: Callable[[str], None] = lambda line: None
) -> Source:
    """Give each image the annotation of its name in a folder or a glob; None: leave the source as it is.

    Args:
        source: A folder of image files.
        path: Folder or glob, local or on a bucket.
        option: Name of the option that the path was given with, for messages.
        say: Takes the line about annotations that no image has.

    Raises:
        UserError: If the source is none of image files, two annotations have a name, or an image has none:
            with the first of them.
    """
    if path is None:
        return source
    images = source.manifest
    if not isinstance(images, FolderManifest):
        raise UserError(
            f"{option}={path} goes with a folder of image files, and {source.uri} holds {images.kind}",
            f"leave out --{option}: annotations of Parquet shards are in their column annotation",
        )
    found = find_files(path, option=option)
    annotations = [entry.name for entry in found.entries if entry.name.lower().endswith(".png")]
    others = Counter(ending_of(entry.name) for entry in found.entries)
    del others["png"]
    if line := describe(added(found.passed_over, by_ending(others))):
        say(f"{option}: {line}")
    if not annotations:
        raise UserError(
            f"{option}={path} holds no PNG",
            "give the folder of the annotations: a PNG of class ids for each image",
        )
    image_names = [os.fsdecode(name) for name in images.names.to_pylist()]
    of_image = _matched(image_names, annotations, f"{option}={path}", source.uri)
    used = set(of_image)  # Two images may share one: a.jpg and a.jpeg.
    if left := len(annotations) - len(used):
        say(f"warning: {left:,} of {len(annotations):,} annotations in {path} belong to no image")
    entries = [entry for entry in found.entries if entry.name in used]
    digest = hashlib.blake2b(
        f"{images.digest}\0{listing_digest('annotations', entries, images.rows)}".encode(), digest_size=16
    )
    manifest = PairedManifest(
        rows=images.rows,
        digest=digest.hexdigest(),
        columns=(*images.columns, ANNOTATION_COLUMN),
        class_names=images.class_names,
        passed_over=images.passed_over,
        images=images,
        root=found.root,
        names=pa.array((os.fsencode(name) for name in of_image), pa.large_binary(), size=len(of_image)),
    )
    size = source.total_bytes + sum(entry.size for entry in entries)
    return replace(source, manifest=manifest, total_bytes=size, summary=f"{source.summary} with annotations")


def _matched(images: Sequence[str], annotations: Sequence[str], option: str, uri: str) -> list[str]:
    """Return the annotation of each image."""
    image_ends, annotation_ends = "", ""
    if not {_stem(name) for name in images} & {_stem(name) for name in annotations}:
        image_ends, annotation_ends = _common_end(images), _common_end(annotations)
    by_name: dict[str, str] = {}
    for annotation in annotations:
        name = _stem(annotation).removesuffix(annotation_ends)
        if name in by_name:
            raise UserError(
                f"{option} has two annotations for {name}: {by_name[name]} and {annotation}",
                "name one kind by a glob, **/*_END.png",
            )
        by_name[name] = annotation
    wanted = [_stem(image).removesuffix(image_ends) for image in images]
    missing = sorted(image for image, name in zip(images, wanted, strict=True) if name not in by_name)
    if missing:
        expected = _stem(missing[0]).removesuffix(image_ends) + annotation_ends + ".png"
        raise UserError(
            f"{option} has {len(annotations):,} annotations, but none for {len(missing):,} of the "
            f"{len(images):,} images of {uri}: {missing[0]} lacks {expected}",
            "give each image an annotation of the same path, or leave the image out",
        )
    return [by_name[name] for name in wanted]


def _stem(name: str) -> str:
    """Return the path without its ending."""
    return os.path.splitext(name)[0]


def _common_end(names: Sequence[str]) -> str:
    """Return the common end of all stems, from a mark such as _ on: `_leftImg8bit`."""
    reversed_stems = sorted(_stem(name).rpartition("/")[2][::-1] for name in names)
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(reversed_stems[0], reversed_stems[-1], strict=False)
    )
    found = re.search(r"[_.\-].*", "".join(letter for letter, _ in same)[::-1])
    return found.group() if found else ""
