"""Evaluate a classifier on every image of a set, exactly once."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beit.classification.metrics import judge, summarise
from beit.classification.model import Classifier
from beit.classification.views import make_centre_view
from beit.config import ViewConfig
from beit.cores import compute_with
from beit.images.decode import Status
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.vit.checkpoints import read_config
from pipelines.cluster.placement import Placement
from pipelines.evaluation.every_image import Batch, judge_all, unusable
from pipelines.runs.models import MODEL_FILES, model_config, view_of
from pipelines.sources import Manifest, Unit
from pipelines.storage import local_copy
from pipelines.stream.graph import read_patiently

IMAGES_AT_ONCE = 64
"""Number of images whose views are made, and which pass through the model, together. A block between the two
stages has 128 MiB, which holds many small images."""

JUDGED = ("unit", "row", "status", "label")


def evaluate(
    manifest: Manifest, checkpoint: str, placement: Placement, *, share: float | None, step: int, classes: int
) -> dict[str, Any]:
    """Evaluate the classifier of a checkpoint; returns JSON types.

    Args:
        manifest: Images with labels.
        checkpoint: Folder or URI with the model.
        placement: The resources to use.
        share: Side of the centre square that the model sees, as a share of the image's shorter side. None:
            the authors' value for the image size.
        step: Step of the checkpoint.
        classes: K.

    Returns:
        "top1", "top5", "loss" and "confusion" (see `Classification`) over the "images" that could be decoded,
        the number of "classes", and in "unusable" the place of each other image with the reason.
    """
    saved = model_config(checkpoint)
    views = functools.partial(
        centre_views, view=view_of(saved, checkpoint), image_size=saved.model.image_size, share=share
    )
    columns = judge_all(manifest, placement, views=views, judge=ClassJudge, checkpoint=checkpoint)
    good = columns["status"] == 0
    result = summarise(
        columns["label"][good],
        {name: columns[name][good] for name in ("prediction", "rank", "loss")},
        classes,
    )
    return {
        "step": step,
        "images": result.images,
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "unusable": unusable(
            manifest, columns, [Status(status).reason for status in columns["status"].tolist()]
        ),
        "classes": classes,
        "confusion": result.confusion.tolist(),
    }


def majority_share(found: Mapping[str, Any]) -> float:
    """The majority-class baseline: the share of the most frequent class among the images that `evaluate`
    counted.
    """
    confusion = np.array(found["confusion"], np.int64).reshape(-1, 3)
    return float(np.bincount(confusion[:, 0], confusion[:, 2], minlength=1).max() / max(1, found["images"]))


def centre_batch(images: Iterable[bytes], *, view: ViewConfig, image_size: int, share: float | None) -> Batch:
    """Decode images to "view" uint8 [n, S, S, 3] and "status" uint8 [n]. The view of an image that cannot be
    decoded is zero.
    """
    made = [make_centre_view(encoded, view=view, image_size=image_size, share=share) for encoded in images]
    return {
        "view": np.stack([pixels for pixels, _ in made]),
        "status": np.array([status for _, status in made], np.uint8),
    }


def centre_views(
    unit: Unit, index: int, count: int, *, view: ViewConfig, image_size: int, share: float | None
) -> Iterator[Batch]:
    """Yield the centre views of a unit in batches."""
    rows = np.arange(count)
    found = read_patiently(unit.read, rows, ("image", "label"))
    for start in range(0, count, IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        views = centre_batch(found["image"][part], view=view, image_size=image_size, share=share)
        yield {
            **views,
            "label": found["label"][part],
            "row": rows[part],
            "unit": np.full(len(rows[part]), index),
        }


class ClassJudge:
    """Holds a checkpoint's classifier, loaded once per actor. It computes in float32."""

    def __init__(self, checkpoint: str, *, device: str, threads: int) -> None:
        compute_with(threads, device=device)
        with local_copy(checkpoint, MODEL_FILES) as folder:
            self._model = load_model(folder, Classifier).to(device)
            self._view = view_of(read_config(folder), checkpoint)
        self._device = device

    def __call__(self, batch: Batch) -> Batch:
        """Replace the views by "prediction", "rank" and "loss"; returns the columns of `JUDGED`."""
        found: dict[str, list[NDArray[Any]]] = defaultdict(list)
        for start in range(0, len(batch["row"]), IMAGES_AT_ONCE):
            views, labels = (
                torch.from_numpy(np.array(batch[name][start : start + IMAGES_AT_ONCE]))
                for name in ("view", "label")
            )
            with torch.inference_mode():
                pixels = normalise(views.to(self._device), self._view)
                for name, value in judge(self._model(pixels), labels.to(self._device)).items():
                    found[name].append(value.cpu().numpy())
        return {
            **{name: batch[name] for name in JUDGED},
            **{name: np.concatenate(parts) for name, parts in found.items()},
        }
