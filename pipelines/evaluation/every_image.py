"""Evaluate a model on every image of a set exactly once, with Ray Data: tasks on CPUs make views, and a pool
of actors holds the model.

Ray Train's workers cannot do this: they split data equally, so rows are left over, or repeated to fill the
shares.
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
"""(unit, its number, its rows) -> batches of its views, with the columns "unit", "row" and "status"."""

FOLDER = "validation"
"""Subfolder of a run folder with the evaluations of classifiers and segmenters."""


def judge_all(
    manifest: Manifest,
    placement: Placement,
    *,
    views: Views,
    judge: Callable[..., Any],
    checkpoint: str,
    **options: Any,
) -> Batch:
    """Apply a model to every image of a set.

    Args:
        manifest: The images.
        placement: The resources to use; each actor has those of a training worker.
        views: Makes a unit's views, in tasks on CPUs.
        judge: Class of the actors. It is built with (checkpoint, device=…, threads=…, **options), and called
            with each batch of `views`.
        checkpoint: Folder or URI with the model.
        options: For `judge`.

    Returns:
        The judge's columns, with one entry per image, ordered by "unit" and "row", which are two of the
        columns.
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
    """Options of `map_batches` for a pool of actors that hold a model. Each has the resources of a training
    worker.

    All actors are requested at once, and work begins when the first one is ready. If the pool grew step by
    step, a short set would be finished before it is complete.
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
    """List (place, reason) of the images that cannot be used, which have a "status" other than 0.

    Args:
        manifest: The images.
        columns: From `judge_all`.
        reasons: A reason for each of them.
    """
    places = np.flatnonzero(columns["status"]).tolist()
    return [
        (manifest.unit(int(columns["unit"][i])).describe(int(columns["row"][i])), str(reasons[i]))
        for i in places
    ]
