"""Draw a sample for segmentation from an encoded image, its annotation and its key. The same key gives the
same sample in every process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from beit.images.decode import Status, UndecodableImage
from beit.segmentation.annotations import AnnotationStatus, BadAnnotation, decode_annotated
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig
from beit.segmentation.views import make_segment_view
from pipelines import seeds
from pipelines.sources import Unit
from pipelines.stream.samples import KEYS, Batch


@dataclass(frozen=True, kw_only=True)
class SegmentSampleConfig:
    """Turns an encoded image, its annotation and its key into a sample."""

    seed: int
    view: SegmentViewConfig
    ids: AnnotationConfig
    patch_px: int
    """Side of the crop, in pixels."""

    columns: ClassVar[tuple[str, ...]] = ("image", "annotation")
    cache: ClassVar[None] = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample in the stream: three values per pixel, and a label of two bytes."""
        return 5 * self.patch_px**2 + 1024

    def make(self, batch: Batch) -> Batch:
        """Turn encoded images and annotations into crops and labels. Every row gives one row.

        An image or annotation that cannot be used becomes a zero view without a pixel that counts and a
        non-zero status.
        """
        keys = zip(*(batch[name].tolist() for name in KEYS), strict=True)
        made = [
            make_segment_view(
                image,
                annotation,
                seeds.generator(self.seed, seeds.VIEW, *key),
                view=self.view,
                ids=self.ids,
                side=self.patch_px,
            )
            for image, annotation, key in zip(batch["image"], batch["annotation"], keys, strict=True)
        ]
        return {
            **{name: batch[name] for name in KEYS},
            "patch_view": np.stack([one.patch_view for one in made]),
            "labels": np.stack([one.labels for one in made]),
            "status": np.array([one.status for one in made], np.uint8),
        }

    def reason(self, unit: Unit, row: int, status: int) -> str:
        """Describe in detail why a sample cannot be used. It is read again, because the stream carries only
        the status.
        """
        if status in [known.value for known in Status]:
            return f"image: {Status(status).reason}"
        try:
            found = unit.read(np.array([row]), self.columns)
            return (
                fault(found["image"][0], found["annotation"][0], view=self.view, ids=self.ids)
                or AnnotationStatus(status).reason
            )
        except OSError:
            return AnnotationStatus(status).reason


def fault(image: bytes, annotation: bytes, *, view: SegmentViewConfig, ids: AnnotationConfig) -> str | None:
    """Describe what is wrong with an image or its annotation; None if nothing is wrong."""
    try:
        decode_annotated(image, annotation, view, ids)
    except UndecodableImage as problem:
        return f"image: {problem}"
    except BadAnnotation as problem:
        return str(problem)
    return None
