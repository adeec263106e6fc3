"""One random crop of an image and of its annotation, with random colours.

This is the transform of BEiT's segmentation (microsoft/unilm, `beit/semantic_segmentation`, with mmseg):
scale, crop with a limit on the share of one class, flip, photometric distortion, padding. Images are resized
bilinearly; an annotation takes the nearest pixel. There are two differences: images are smoothed when they
shrink (OpenCV, which mmseg uses, picks pixels), and colours are rounded once at the end, not after each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.images.decode import Status, UndecodableImage
from beit.segmentation.annotations import IGNORED, AnnotationStatus, BadAnnotation, Labels, decode_annotated
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig

CROP_TRIES = 10
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SegmentView:
    """A crop for training."""

    patch_view: Pixels
    """[P, P, 3]"""

    labels: Labels
    """[P, P]: classes from 0, or IGNORED."""

    status: Status | AnnotationStatus
    """DECODED, or why there is no crop: then all pixels are 0 and all labels are IGNORED."""


def make_segment_view(
    encoded: bytes,
    annotation: bytes,
    rng: np.random.Generator,
    *,
    view: SegmentViewConfig,
    ids: AnnotationConfig,
    side: int,
) -> SegmentView:
    """Decode an image and its annotation and take one random crop of both.

    Whatever the files hold, no exception is raised.

    Args:
        encoded: The image file's bytes.
        annotation: The annotation file's bytes.
        rng: Source of all randomness. How many numbers are drawn from it does not depend on the files.
        view: Ranges of the random choices, how to decode images that are not plain RGB, and the mean colour
            for padding.
        ids: What the annotation's ids mean.
        side: P, in pixels.
    """
    draws = rng.random(DRAWS)
    try:
        image, labels = decode_annotated(encoded, annotation, view, ids)
    except (UndecodableImage, BadAnnotation) as problem:
        blank = np.full((side, side), IGNORED, np.int16)
        return SegmentView(
            patch_view=np.zeros((side, side, 3), np.uint8), labels=blank, status=problem.status
        )
    patch_view, labels = transform(image, labels, draws, view=view, side=side)
    return SegmentView(patch_view=patch_view, labels=labels, status=Status.DECODED)


# Two for scale and flip, nine for colour (the order, four yes-or-no choices, four amounts), two for each
# crop.
DRAWS = 2 + 9 + 2 * CROP_TRIES


def transform(
    image: Pixels, labels: Labels, draws: NDArray[np.float64], *, view: SegmentViewConfig, side: int
) -> tuple[Pixels, Labels]:
    """Take one random crop of an image and of its labels.

    Args:
        image: uint8 [H, W, 3].
        labels: int16 [H, W].
        draws: float64 [DRAWS], in [0, 1): the random numbers to use.
        view: Ranges of the random choices. If the image is smaller than the crop, the rest is filled with the
            mean colour, which is 0 after normalisation to within half a grey level.
        side: P, in pixels.

    Returns:
        uint8 [P, P, 3] and int16 [P, P]; outside of the image, labels are IGNORED.
    """
    height, width = labels.shape
    low, high = view.scale
    rows, columns = scaled_size(height, width, view, low + float(draws[0]) * (high - low))
    inner_rows, inner_columns = min(side, rows), min(side, columns)
    # A scaled pixel has the label of the pixel that contains its centre.
    row_of = ((np.arange(rows) + 0.5) * height / rows).astype(np.int64)
    column_of = ((np.arange(columns) + 0.5) * width / columns).astype(np.int64)
    for down, right in draws[11:].reshape(-1, 2):
        top, left = int(down * (rows - inner_rows + 1)), int(right * (columns - inner_columns + 1))
        inner = labels[np.ix_(row_of[top : top + inner_rows], column_of[left : left + inner_columns])]
        if _is_mixed(inner, view.most_of_one_class):
            break
    # Pillow resizes a box as part of the whole image: pixels just outside the box still count at its edge.
    across, along = width / columns, height / rows
    box = (
        left * across,
        top * along,
        min(width, (left + inner_columns) * across),
        min(height, (top + inner_rows) * along),
    )
    crop = np.asarray(
        Image.fromarray(image).resize((inner_columns, inner_rows), Image.Resampling.BILINEAR, box=box)
    )
    crop = _distort(crop, draws[2:11], view)
    patch_view = np.empty((side, side, 3), np.uint8)
    patch_view[:] = np.rint(255 * np.array(view.mean))
    padded = np.full((side, side), IGNORED, np.int16)
    step = -1 if draws[1] < view.flip else 1
    patch_view[:inner_rows, :inner_columns] = crop[:, ::step]
    padded[:inner_rows, :inner_columns] = inner[:, ::step]
    return patch_view, padded


def whole_view(image: Pixels, view: SegmentViewConfig, *, largest: float = 1.0) -> Pixels:
    """Return a whole image uint8 [H, W, 3] for evaluation, at the size for the largest ratio.

    It is never enlarged.
    """
    rows, columns = scaled_size(image.shape[0], image.shape[1], view, largest)
    if rows >= image.shape[0]:
        return image
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


def scaled_size(height: int, width: int, view: SegmentViewConfig, factor: float) -> tuple[int, int]:
    """Return rows and columns of an image scaled as in training, by a factor, with its proportions kept."""
    factor *= min(view.short_side / min(height, width), view.long_side / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _is_mixed(labels: Labels, most: float) -> bool:
    if most == 1:
        return True
    counts = np.bincount(labels[labels != IGNORED])
    return bool(np.count_nonzero(counts) > 1 and counts.max() < most * counts.sum())


def _distort(crop: Pixels, draws: NDArray[np.float64], view: SegmentViewConfig) -> Pixels:
    """Change brightness, contrast, saturation and hue, each at random; contrast comes second or last."""
    brighter, contrasted, saturated, turned = (draws[1:5] < view.distort).tolist()
    shares = draws[5:].tolist()
    factor = view.contrast[0] + shares[1] * (view.contrast[1] - view.contrast[0])
    values = crop.astype(np.float32)
    if brighter:
        values = (values + view.brightness * (2 * shares[0] - 1)).clip(0, 255)
    if contrasted and draws[0] < 0.5:
        values = (values * factor).clip(0, 255)
    if saturated or turned:
        saturation = (
            view.saturation[0] + shares[2] * (view.saturation[1] - view.saturation[0]) if saturated else 1.0
        )
        values = recoloured(
            values, saturation=saturation, degrees=view.hue * (2 * shares[3] - 1) if turned else 0.0
        )
    if contrasted and draws[0] >= 0.5:
        values = (values * factor).clip(0, 255)
    return np.rint(values).astype(np.uint8)


def recoloured(values: NDArray[np.float32], *, saturation: float, degrees: float) -> NDArray[np.float32]:
    """Multiply the saturation of colours [..., 3] and turn their hue.

    Saturation is that of HSV, at most 1 afterwards. The value of the largest channel stays.
    """
    value = values.max(-1)
    spread = value - values.min(-1)
    red, green, blue = np.moveaxis(values, -1, 0)
    safe = np.where(spread > 0, spread, 1)
    sixth = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    ).astype(np.float32)
    sixth += np.float32(degrees / 60)
    spread = np.minimum(spread * np.float32(saturation), value)
    turned = np.empty_like(values)
    for channel, offset in enumerate((5, 3, 1)):
        place = (offset + sixth) % 6
        turned[..., channel] = value - spread * np.minimum(place, 4 - place).clip(0, 1)
    return turned
