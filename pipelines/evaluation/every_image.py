"""Judge a model on every image of a set exactly once, by Ray Data: CPU tasks make views, a pool of actors
holds the model.

Not by Ray Train's workers: what they share equally leaves rows over, or repeats some to fill it up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines.cluster.placement import Placement
from pipelines.sources import Manifest, Unit

Batch = dict[str, NDArray[Any]]
Views = Callable[[Unit, int, int], Iterator[Batch]]
"""(unit, its number, its rows) -> its images as they are judged, some at a time, with the columns "unit",
"row" and "status"."""

FOLDER = "validation"
"""Where evaluations of classifiers and segmenters lie in a run folder."""


def judge_all(
    manifest: Manifest,
    placement: Placement,
    *,
    views: Views,
    judge: Callable[..., Any],
    checkpoint: str,
    **options: Any,
) -> Batch:
    """What a model says about every image of a set.

    Args:
        manifest: The images.
        placement: The actors take the places that training workers have.
        views: Makes a unit's views, in tasks on CPUs.
        judge: Class of the actors: built with (checkpoint, device=…, threads=…, **options), called with what
            `views` yields.
        checkpoint: Folder or URI with the model.
        options: For `judge`.

    Returns:
        The judge's columns, an entry an image, ordered by "unit" and "row", which are among them.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    units = len(manifest.rows)
    shared = ray.put(manifest)
    blocks = [pa.table({"unit": part}) for part in np.array_split(np.arange(units), min(units, 256))]
    made = ray.data.from_blocks(blocks).map_batches(
        functools.partial(_make_views, shared=shared, views=views),
        batch_size=None,
        num_cpus=placement.view_cpus,
        resources=placement.tag("views"),
    )
    judged = made.map_batches(
        judge,
        fn_constructor_args=(checkpoint,),
        fn_constructor_kwargs={"device": placement.device, "threads": placement.worker_threads, **options},
        **pool(placement, len(blocks)),
    )
    parts = list(judged.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["row"], columns["unit"]))
    columns = {name: column[order] for name, column in columns.items()}
    _check_once(manifest, columns)
    return columns


def pool(placement: Placement, blocks: int) -> dict[str, Any]:
    """Options of `map_batches` for actors with a model, a block at a time: they take the places that training
    workers have.

    All of them are asked for at once, and work begins with the first that is there: grown step by step, a
    pool of many GPUs would be complete when a short set is judged.
    """
    import ray.data

    size = min(placement.workers, blocks)
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, initial_size=size, max_size=placement.most_workers),
        "batch_size": None,
        "num_cpus": placement.worker_cpus,
        "num_gpus": placement.worker_gpus,
        "resources": placement.tag("train"),
    }


def _make_views(batch: Batch, *, shared: Any, views: Views) -> Iterator[Batch]:
    import ray

    torch.set_num_threads(1)
    manifest: Manifest = ray.get(shared)
    for index in batch["unit"].tolist():
        yield from views(manifest.unit(index), index, int(manifest.rows[index]))


def _check_once(manifest: Manifest, columns: Batch) -> None:
    unit = np.repeat(np.arange(len(manifest.rows)), manifest.rows)
    row = np.concatenate([np.arange(rows) for rows in manifest.rows])
    if not (np.array_equal(columns["unit"], unit) and np.array_equal(columns["row"], row)):
        raise RuntimeError(
            f"{manifest.total:,} images were to be judged once each, {len(columns['unit']):,} were"
        )


def unusable(manifest: Manifest, columns: Batch, reasons: Sequence[str]) -> list[tuple[str, str]]:
    """(where the image lies, why it cannot be used) of the images with a "status" other than 0; a reason for
    every image is given.
    """
    places = np.flatnonzero(columns["status"]).tolist()
    return [
        (manifest.unit(int(columns["unit"][i])).describe(int(columns["row"][i])), str(reasons[i]))
        for i in places
    ]
