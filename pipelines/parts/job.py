"""The Ray Data job that writes the missing parts of a store.

Tasks on CPUs read the images of a part and make their views; a pool of actors with a model computes what is
kept of them, and writes the part.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.cluster.placement import Placement
from pipelines.runs.progress import duration
from pipelines.sources import Manifest
from pipelines.sources.base import Columns

PROGRESS_SECONDS = 10.0

PARTS_PER_ROUND = 2000
"""Parts that Ray Data is given at a time, of tokens as of features.

Ray keeps 46 kB on the driver for each block of a data set, and a part is a block: 92 MB for a round. Without
rounds the tokens of 20 epochs of ImageNet-1k, 12,500 parts, would take 575 MB. In exchange the actors end
and start again between two rounds, and each loads its model again. That is seconds after many minutes: a
round holds about 1 million images of features (512 a part), or 4 million views of tokens (16 units a part,
of 128 images in a folder). The parts that are written, and the progress lines, do not depend on it.
"""


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of a unit. A part holds the images of one piece or several."""

    unit: int
    first: int
    last: int
    """First row after the piece."""

    epoch: int = 0
    """Epoch whose views are made; 0 if all epochs have the same."""

    @property
    def images(self) -> int:
        """Rows of the piece."""
        return self.last - self.first


class PartWriter(ABC):
    """The class of the actors: it loads the model once, then writes parts."""

    @abstractmethod
    def write(self, part: int, views: Columns) -> dict[str, Any]:
        """Write one part.

        Args:
            part: Its number.
            views: What the job's `views` made of its images.

        Returns:
            What the driver is to know about it.
        """

    def __call__(self, batch: Columns) -> Columns:
        """Write the part of these views; returns a row with the result of `write`.

        Raises:
            RuntimeError: If they are not all of them, or not of one part.
        """
        part, images = int(batch["part"][0]), len(batch["part"])
        if (batch["part"] != part).any() or images != batch["images"][0]:
            raise RuntimeError(
                f"Ray has divided or joined blocks: {images} images of part {part} instead of "
                f"{batch['images'][0]}"
            )
        row = {"images": images, **self.write(part, batch)}
        return {name: np.array([value]) for name, value in row.items()}


def write_missing(
    missing: Sequence[int],
    manifest: Manifest,
    placement: Placement,
    *,
    pieces: Callable[[int], Sequence[Piece]],
    images: int,
    views: Callable[[Manifest, Sequence[Piece]], Columns],
    writer: type[PartWriter],
    options: Mapping[str, Any],
    actors: Callable[[int], dict[str, Any]],
    words: tuple[str, str],
    say: Callable[[str], None],
    check: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    """Write the missing parts, with a progress line every ten seconds.

    Args:
        missing: Their numbers.
        manifest: The images that the parts are made from.
        placement: Resources of the tasks that make views.
        pieces: Which images a part holds.
        images: Of all missing parts.
        views: Makes the views of a part's images, an entry an image in every column.
        writer: Class of the actors.
        options: What it is built with.
        actors: Options of `map_batches` for the actors, where there are so many parts.
        words: What the lines call a part, and an image: ("part", "views").
        say: Takes the lines.
        check: Takes what the writer returned about each part, and "images"; what it raises ends the job.
    """
    one, many = words
    done, start = 0, time.monotonic()
    last = start
    rows = _run(missing, manifest, placement, pieces, views, writer, options, actors)
    for count, row in enumerate(rows, 1):
        check(row)
        done += int(row["images"])
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or count == len(missing):
            rate = done / (now - start)
            left = duration((images - done) / rate)
            say(f"{one} {count:,}/{len(missing):,} | {rate:,.0f} {many}/s | eta {left}")
            last = now


def _run(
    missing: Sequence[int],
    manifest: Manifest,
    placement: Placement,
    pieces: Callable[[int], Sequence[Piece]],
    views: Callable[[Manifest, Sequence[Piece]], Columns],
    writer: type[PartWriter],
    options: Mapping[str, Any],
    actors: Callable[[int], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each part as it is written."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    shared = ray.put(manifest)
    block_size = context.target_max_block_size
    context.target_max_block_size = None  # A part is a block, however large.
    try:
        for start in range(0, len(missing), PARTS_PER_ROUND):
            blocks = [_block(part, pieces(part)) for part in missing[start : start + PARTS_PER_ROUND]]
            made = ray.data.from_blocks(blocks).map_batches(
                functools.partial(_views_of_part, shared=shared, views=views),
                batch_size=1,
                num_cpus=placement.view_cpus,
                resources=placement.tag("views"),
            )
            written = made.map_batches(writer, fn_constructor_kwargs=dict(options), **actors(len(blocks)))
            yield from written.iter_rows()
    finally:
        context.target_max_block_size = block_size


_PIECE = tuple(field.name for field in fields(Piece))


def _block(part: int, pieces: Sequence[Piece]) -> pa.Table:
    """Make the block of a part: its number and pieces. The pieces of all parts would be unpickled by every
    task.
    """
    columns = {name: [[getattr(piece, name) for piece in pieces]] for name in _PIECE}
    return pa.table({"part": [part], **columns})


def _views_of_part(
    batch: Columns, *, shared: Any, views: Callable[[Manifest, Sequence[Piece]], Columns]
) -> Columns:
    """Make the views of a part's images, with its number and theirs, in one block."""
    import ray

    torch.set_num_threads(1)
    pieces = [Piece(*map(int, numbers)) for numbers in zip(*(batch[name][0] for name in _PIECE), strict=True)]
    images = sum(piece.images for piece in pieces)
    made = views(ray.get(shared), pieces)
    return {"part": np.full(images, int(batch["part"][0])), "images": np.full(images, images), **made}
