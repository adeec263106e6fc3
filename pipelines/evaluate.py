"""Judge a classifier on every image of a set exactly once, by Ray Data: CPU tasks make views, a pool of actors holds the model.

Not by Ray Train's workers: what they share equally leaves rows over, or repeats some to fill it up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.config import ViewConfig
from beit.decode import Status
from beit.metrics import Classification, summarise
from pipelines import evaluations
from pipelines.models import MODEL_FILES
from pipelines.placement import Placement
from pipelines.sources.labels import LabelledManifest, LabelledUnit
from pipelines.storage import local_copy
from pipelines.stream import read_patiently

Batch = dict[str, NDArray[Any]]

ROWS_PER_BATCH = 64
FOLDER = "validation"
JUDGED = ("unit", "row", "status", "label", "prediction", "rank", "loss")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result on a validation set."""

    step: int
    result: Classification
    undecodable: list[tuple[str, str]]
    """(where the image lies, why it cannot be decoded): counted here, and in no accuracy."""


def evaluate(manifest: LabelledManifest, checkpoint: str, placement: Placement, *, share: float | None) -> Batch:
    """What the model of a checkpoint says about every image.

    Args:
        manifest: The images.
        checkpoint: Folder or URI with the model.
        placement: The actors take the places that training workers have.
        share: Share of the short side that is looked at. None: the authors' for the image size.

    Returns:
        The columns of `JUDGED`, an entry an image, ordered by unit and row. Of images that cannot be decoded the last three mean nothing.
    """
    import pyarrow as pa
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    units = len(manifest.rows)
    shared = ray.put(manifest)
    blocks = [pa.table({"unit": part}) for part in np.array_split(np.arange(units), min(units, 256))]
    with local_copy(checkpoint, MODEL_FILES) as folder:
        from beit.checkpoints import read_config

        saved = read_config(folder)
    view = view_of(saved.extra)
    views = ray.data.from_blocks(blocks).map_batches(
        functools.partial(_views, shared=shared, view=view, image_size=saved.model.image_size, share=share),
        batch_size=None,
        num_cpus=placement.view_cpus,
    )
    judged = views.map_batches(
        Judge,
        fn_constructor_args=(checkpoint,),
        fn_constructor_kwargs={"device": placement.device, "threads": placement.worker_threads},
        **pool(placement),
    )
    parts = list(judged.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in JUDGED}
    order = np.lexsort((columns["row"], columns["unit"]))
    columns = {name: column[order] for name, column in columns.items()}
    _check_once(manifest, columns)
    return columns


def _check_once(manifest: LabelledManifest, columns: Batch) -> None:
    unit = np.repeat(np.arange(len(manifest.rows)), manifest.rows)
    row = np.concatenate([np.arange(rows) for rows in manifest.rows])
    if not (np.array_equal(columns["unit"], unit) and np.array_equal(columns["row"], row)):
        raise RuntimeError(f"{manifest.total:,} images were to be judged once each, {len(columns['unit']):,} were")


def view_of(extra: dict[str, Any]) -> ViewConfig:
    """How a checkpoint's model wants its pixels, by the "extra" of its config.json."""
    from beit.config import from_dict

    return from_dict(ViewConfig, extra["view"]) if "view" in extra else ViewConfig()


def pool(placement: Placement) -> dict[str, Any]:
    """Options of `map_batches` for actors with a model, a block at a time: they take the places that training workers have."""
    import ray.data

    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=placement.workers),
        "batch_size": None,
        "num_cpus": placement.worker_cpus,
        "num_gpus": placement.worker_gpus,
    }


def centre_batch(images: Iterable[bytes], *, view: ViewConfig, image_size: int, share: float | None) -> Batch:
    """Encoded images -> "view" uint8 [n, S, S, 3] and "status" uint8 [n]; zeros for an image that cannot be decoded."""
    from beit.classification_views import make_centre_view

    made = [make_centre_view(encoded, view=view, image_size=image_size, share=share) for encoded in images]
    return {"view": np.stack([pixels for pixels, _ in made]), "status": np.array([status for _, status in made], np.uint8)}


def centre_views(unit: LabelledUnit, index: int, *, view: ViewConfig, image_size: int, share: float | None) -> Iterator[Batch]:
    """The images of a unit as they are judged, some at a time."""
    rows = np.arange(len(unit.labels))
    found = read_patiently(unit.read, rows, ("image", "label"))
    for start in range(0, len(rows), ROWS_PER_BATCH):
        part = slice(start, start + ROWS_PER_BATCH)
        views = centre_batch(found["image"][part], view=view, image_size=image_size, share=share)
        yield {**views, "label": found["label"][part], "row": rows[part], "unit": np.full(len(rows[part]), index)}


def _views(batch: Batch, *, shared: Any, view: ViewConfig, image_size: int, share: float | None) -> Iterator[Batch]:
    import ray
    import torch

    torch.set_num_threads(1)
    manifest: LabelledManifest = ray.get(shared)
    for index in batch["unit"].tolist():
        yield from centre_views(manifest.unit(index), index, view=view, image_size=image_size, share=share)


class Judge:
    """A checkpoint's classifier. Loaded once an actor; computes in full precision."""

    def __init__(self, checkpoint: str, *, device: str, threads: int) -> None:
        import torch

        from beit.checkpoints import load_model, read_config
        from beit.classifier import Classifier

        torch.set_num_threads(threads)
        with local_copy(checkpoint, MODEL_FILES) as folder:
            self._model = load_model(folder, Classifier).to(device)
            self._view = view_of(read_config(folder).extra)
        self._device = device

    def __call__(self, batch: Batch) -> Batch:
        """Views and labels -> the columns of `JUDGED`; the views stay behind."""
        import torch

        from beit.metrics import judge
        from beit.pixels import normalise

        with torch.inference_mode():
            pixels = normalise(torch.from_numpy(np.array(batch["view"])).to(self._device), self._view)
            found = judge(self._model(pixels), torch.from_numpy(np.array(batch["label"])).to(self._device))
        return {**{name: batch[name] for name in JUDGED[:4]}, **{name: value.cpu().numpy() for name, value in found.items()}}


def conclude(manifest: LabelledManifest, columns: Batch, *, step: int, classes: int) -> Evaluation:
    """Accuracies over the images that could be decoded, and a list of those that could not."""
    good = columns["status"] == 0
    judged = {name: columns[name][good] for name in ("prediction", "rank", "loss")}
    bad = [
        (manifest.unit(int(columns["unit"][i])).describe(int(columns["row"][i])), Status(int(columns["status"][i])).reason)
        for i in np.flatnonzero(~good)
    ]
    return Evaluation(step=step, result=summarise(columns["label"][good], judged, classes), undecodable=bad)


def save_evaluation(run: str, evaluation: Evaluation) -> None:
    """Write an evaluation into the run folder."""
    result = evaluation.result
    values = {
        "images": result.images,
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "undecodable": evaluation.undecodable,
        "confusion": result.confusion.tolist(),
    }
    evaluations.save(run, FOLDER, evaluation.step, values)
