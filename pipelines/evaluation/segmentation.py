"""Evaluate a segmenter on every image of a set, exactly once. Pixels are counted by class and predicted
class, at the annotations' own size.
"""

from __future__ import annotations

import functools
import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beit.cores import compute_with
from beit.images.decode import UndecodableImage, decode
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.segmentation.annotations import BadAnnotation, decode_annotated, decode_annotation
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig, SlidingConfig
from beit.segmentation.metrics import confusion, summarise
from beit.segmentation.model import Segmenter
from beit.segmentation.pictures import segmentation_sheet
from beit.segmentation.sliding import PIXELS_AT_ONCE, scaled_to, segment
from beit.segmentation.views import scaled_size, whole_view
from pipelines import seeds, storage
from pipelines.cluster.placement import Placement
from pipelines.evaluation.every_image import FOLDER, Batch, judge_all, unusable
from pipelines.runs.models import MODEL_FILES
from pipelines.sources import Manifest, Unit
from pipelines.storage import local_copy
from pipelines.stream.graph import read_patiently

BATCH_BYTES = 16 << 20
"""Bytes of decoded images that are sent to the model together."""

LOGITS_AT_ONCE = 1 << 27
"""Images of one size pass through the model together, as long as the maps that `segment` holds at its largest
scale have at most this many numbers: half a gigabyte (on a GPU, the limit is a quarter of the free memory). A
single image is never divided, however large. Maps inside the model are not counted."""

MAPS_HELD = 3
"""Number of maps, with K numbers per pixel, that `segment` holds at a time: logits, probabilities, and their
sum over scales."""

PICTURES = 6

Key = tuple[int, int]


def evaluate(
    manifest: Manifest,
    checkpoint: str,
    placement: Placement,
    *,
    run: str,
    step: int,
    view: SegmentViewConfig,
    ids: AnnotationConfig,
    test: SlidingConfig,
    names: Sequence[str],
) -> dict[str, Any]:
    """Evaluate the segmenter of a checkpoint; returns JSON types. Pictures are written into the run folder.

    Args:
        manifest: Images with annotations.
        checkpoint: Folder or URI with the model.
        placement: The resources to use.
        run: Run folder.
        step: Step of the checkpoint.
        view: How whole images are scaled.
        ids: What the annotations' ids stand for.
        test: Windows, scales and mirroring.
        names: K class names.

    Returns:
        "mean_iou", "mean_accuracy", "overall_accuracy", "iou" and "accuracy" [K] (None: not defined) and
        "confusion" [K, K], over all pixels that count, of the "images" that could be used; "unusable" lists
        the other images with the reasons; "pictures" is the name of the sheet, if there is one.
    """
    shown = draw_shown(manifest.rows)
    views = functools.partial(whole_views, view=view, ids=ids, largest=max(test.ratios))
    columns = judge_all(
        manifest,
        placement,
        views=views,
        judge=PixelJudge,
        checkpoint=checkpoint,
        view=view,
        test=test,
        shown=frozenset(shown),
    )
    result = summarise(add_up(columns["counts"], len(names)))
    sheet = None
    if picture := _sheet(manifest, columns, view, ids, names):
        sheet = f"step-{step:08d}{test.name}.png"
        storage.write_bytes(storage.join(run, FOLDER, sheet), picture)
    return {
        "step": step,
        "images": int(np.count_nonzero(columns["status"] == 0)),
        "mean_iou": result.mean_iou,
        "mean_accuracy": result.mean_accuracy,
        "overall_accuracy": result.overall_accuracy,
        "iou": _plain(result.iou),
        "accuracy": _plain(result.accuracy),
        "confusion": result.confusion.tolist(),
        "unusable": unusable(manifest, columns, columns["reason"].tolist()),
        "test": {"stride": test.stride, "ratios": list(test.ratios), "flip": test.flip},
        "pictures": sheet,
    }


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def draw_shown(rows: NDArray[np.int32]) -> list[Key]:
    """Draw (unit, row) of the images that reports show; they are always the same for the same data."""
    ends = np.cumsum(rows, dtype=np.int64)
    chosen = seeds.generator(0, seeds.REPORT, 0, 0, 0).permutation(int(ends[-1]))[:PICTURES]
    unit = np.searchsorted(ends, chosen, side="right")
    return list(zip(unit.tolist(), (chosen - (ends - rows)[unit]).tolist(), strict=True))


def whole_views(
    unit: Unit,
    index: int,
    count: int,
    *,
    view: SegmentViewConfig,
    ids: AnnotationConfig,
    largest: float = 1.0,
) -> Iterator[Batch]:
    """Yield the whole images and labels of a unit in batches. Arrays differ in size, so they are given as
    bytes with their sizes.

    Args:
        unit: The unit to read.
        index: Its number.
        count: Its rows.
        view: How whole images are scaled.
        ids: What the annotations' ids stand for.
        largest: The largest ratio of the evaluation.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    found = read_patiently(unit.read, np.arange(count), ("image", "annotation"))
    for row, (image, annotation) in enumerate(zip(found["image"], found["annotation"], strict=True)):
        rows.append({"unit": index, "row": row, **_whole_view(image, annotation, view, ids, largest)})
        size += len(rows[-1]["pixels"]) + len(rows[-1]["labels"])
        if size >= BATCH_BYTES:
            yield _columns(rows)
            rows, size = [], 0
    if rows:
        yield _columns(rows)


def _whole_view(
    image: bytes, annotation: bytes, view: SegmentViewConfig, ids: AnnotationConfig, largest: float
) -> dict[str, Any]:
    try:
        pixels, labels = decode_annotated(image, annotation, view, ids)
    except (UndecodableImage, BadAnnotation) as problem:
        reason = f"image: {problem}" if isinstance(problem, UndecodableImage) else str(problem)
        nothing = {"pixels": b"", "shape": (0, 0), "labels": b"", "size": (0, 0)}
        return {"status": int(problem.status), "reason": reason, **nothing}
    seen = whole_view(pixels, view, largest=largest)
    sizes = {"shape": seen.shape[:2], "size": labels.shape}
    return {"status": 0, "reason": "", "pixels": seen.tobytes(), "labels": labels.tobytes(), **sizes}


def _columns(rows: list[dict[str, Any]]) -> Batch:
    kinds = {"unit": np.int64, "row": np.int64, "status": np.uint8, "shape": np.int64, "size": np.int64}
    return {name: np.array([row[name] for row in rows], kinds.get(name, object)) for name in rows[0]}


class PixelJudge:
    """Holds a checkpoint's segmenter, loaded once per actor. It computes in float32."""

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str,
        threads: int,
        view: SegmentViewConfig,
        test: SlidingConfig,
        shown: Collection[Key],
    ) -> None:
        compute_with(threads, device=device)
        # TF32 would round the factors in the head's convolutions to 10 bits.
        torch.backends.cudnn.allow_tf32 = False
        with local_copy(checkpoint, MODEL_FILES) as folder:
            self._model = load_model(folder, Segmenter).to(device)
        self._device, self._view, self._test, self._shown = device, view, test, shown
        # A quarter of the free memory in numbers of four bytes.
        self._room = LOGITS_AT_ONCE if device == "cpu" else torch.cuda.mem_get_info()[0] // 16

    def __call__(self, batch: Batch) -> Batch:
        """Evaluate a batch of `whole_views`; returns "unit", "row", "status", "reason", "counts" and
        "predicted".

        "counts" holds pixels by class and predicted class as bytes (see `sparse`), empty for images that
        cannot be used. "predicted" holds the classes int16 [H, W] as bytes, for the images that reports show.
        """
        judged = len(batch["row"])
        counts, shown = np.full(judged, b"", object), np.full(judged, b"", object)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i in np.flatnonzero(batch["status"] == 0).tolist():
            alike[(*batch["shape"][i].tolist(), *batch["size"][i].tolist())].append(i)
        for (rows, columns, height, width), members in alike.items():
            at_once = self._images_at_once((height, width))
            for start in range(0, len(members), at_once):
                part = members[start : start + at_once]
                pixels = [np.frombuffer(batch["pixels"][i], np.uint8).reshape(rows, columns, 3) for i in part]
                for i, predicted in zip(part, self._predict(np.stack(pixels), (height, width)), strict=True):
                    labels = np.frombuffer(batch["labels"][i], np.int16).reshape(height, width)
                    counts[i] = sparse(confusion(labels, predicted, self._model.classes))
                    if (int(batch["unit"][i]), int(batch["row"][i])) in self._shown:
                        shown[i] = predicted.astype(np.int16).tobytes()
        return {
            **{name: batch[name] for name in ("unit", "row", "status", "reason")},
            "counts": counts,
            "predicted": shown,
        }

    def _images_at_once(self, size: tuple[int, int]) -> int:
        """Number of images, with annotations of this size, that may pass through the model together."""
        crop, scaled = self._model.config.image_size, scaled_size(*size, self._view, 1.0)
        largest = max(math.prod(scaled_to(*scaled, ratio=ratio, crop=crop)) for ratio in self._test.ratios)
        by_logits = self._room // (MAPS_HELD * self._model.classes * max(largest, math.prod(size)))
        return max(1, min(by_logits, PIXELS_AT_ONCE // crop**2))

    def _predict(self, images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.int64]:
        """Predict the classes [B, *size] of images uint8 [B, H, W, 3]."""
        crop = self._model.config.image_size
        with torch.inference_mode():
            pixels = normalise(torch.from_numpy(images).to(self._device), self._view)
            stride = self._test.stride_for(crop)
            probabilities = segment(
                self._model,
                pixels,
                size=size,
                scaled=scaled_size(*size, self._view, 1.0),
                crop=crop,
                stride=stride,
                ratios=self._test.ratios,
                flip=self._test.flip,
            )
            found: NDArray[np.int64] = probabilities.argmax(1).cpu().numpy()
        return found


def sparse(counts: NDArray[np.int64]) -> bytes:
    """Pack a confusion matrix [K, K] into bytes: the flat indices of its non-zero entries, then these
    entries, as int64.
    """
    places = np.flatnonzero(counts)
    return np.concatenate([places, counts.flat[places]]).astype(np.int64).tobytes()


def add_up(counts: NDArray[np.object_], classes: int) -> NDArray[np.int64]:
    """Add up confusion matrices that `sparse` packed; returns int64 [K, K]."""
    total = np.zeros(classes**2, np.int64)
    for packed in counts:
        places, found = np.frombuffer(packed, np.int64).reshape(2, -1)
        total[places] += found
    return total.reshape(classes, classes)


def _sheet(
    manifest: Manifest, columns: Batch, view: SegmentViewConfig, ids: AnnotationConfig, names: Sequence[str]
) -> bytes:
    """Draw image, truth and prediction of the images that reports show; returns a PNG."""
    images, truths, predictions = [], [], []
    for i in np.flatnonzero([len(predicted) > 0 for predicted in columns["predicted"]]).tolist():
        found = manifest.unit(int(columns["unit"][i])).read(
            columns["row"][i : i + 1], ("image", "annotation")
        )
        images.append(decode(found["image"][0], view))
        truths.append(
            decode_annotation(
                found["annotation"][0], ids, height=images[-1].shape[0], width=images[-1].shape[1]
            )
        )
        predictions.append(np.frombuffer(columns["predicted"][i], np.int16).reshape(truths[-1].shape))
    if not images:
        return b""
    buffer = io.BytesIO()
    segmentation_sheet(images, truths, predictions, names).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
