"""Segment images of any size with a model of one crop size: overlapping windows, several scales, mirroring.

This is how the released code evaluates (microsoft/unilm, beit/semantic_segmentation, with mmseg): windows of
512 pixels every 341 pixels, logits averaged where they overlap; ratios 0.5 to 1.75 with flip, probabilities
averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from beit.segmentation.heads.layers import resized

PIXELS_AT_ONCE = 1 << 21
"""Pixels of the windows that go through the model in one pass: eight windows of 512. This bounds the memory
that the model needs."""

MOST_CROPS = 8
"""Limit on how many crops fit along the longer side of an image that is enlarged to the crop size. Without
it, an image of 10 x 1000 pixels would need 100."""

# Float [B, 3, crop, crop] -> logits [B, K, crop, crop]
Model = Callable[[Tensor], Tensor]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return where windows begin along a side: every `stride`, the last one ending with the image."""
    last = max(0, length - crop)
    return [*range(0, last, stride), last]


def slide(model: Model, pixels: Tensor, *, crop: int, stride: int) -> Tensor:
    """Return logits [B, K, H, W], averaged over the windows that contain a pixel.

    Args:
        model: Takes windows, all of the crop's size.
        pixels: Float [B, 3, H, W], normalised. Sides shorter than the crop are padded with 0, the mean
            colour, at the bottom and on the right.
        crop: Side of a window.
        stride: Distance from window to window, at most the crop.
    """
    if not 0 < stride <= crop:
        raise ValueError(
            f"windows of {crop} pixels that are {stride} apart leave pixels out; the stride must be 1 to "
            f"{crop}"
        )
    height, width = pixels.shape[2:]
    pixels = pad(pixels, (0, max(0, crop - width), 0, max(0, crop - height)))
    total: Tensor | None = None
    count = pixels.new_zeros(pixels.shape[2:], dtype=torch.float32)
    tops, lefts = (window_starts(length, crop, stride) for length in pixels.shape[2:])
    windows = [(..., slice(top, top + crop), slice(left, left + crop)) for top in tops for left in lefts]
    images = len(pixels)
    at_once = max(1, PIXELS_AT_ONCE // (images * crop**2))
    for start in range(0, len(windows), at_once):
        part = windows[start : start + at_once]
        found = model(torch.cat([pixels[window] for window in part])).float()
        for window, logits in zip(part, torch.split(found, images), strict=True):
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *pixels.shape[2:])
            total[window] += logits
            count[window] += 1
    assert total is not None
    return (total / count)[..., :height, :width]


def scaled_to(height: int, width: int, *, ratio: float, crop: int) -> tuple[int, int]:
    """Return height and width of an image at a ratio, raised as in `segment`."""
    factor = max(ratio, min(crop / min(height, width), MOST_CROPS * crop / max(height, width)))
    return round(height * factor), round(width * factor)


def segment(
    model: Model,
    pixels: Tensor,
    *,
    size: tuple[int, int],
    scaled: tuple[int, int],
    crop: int,
    stride: int,
    ratios: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Return probabilities [B, K, height, width], averaged over scales and, if asked, over mirroring.

    Args:
        model: Takes windows, all of the crop's size; in evaluation mode.
        pixels: Float [B, 3, H, W], normalised: images from `whole_view`. Every scale is resized from these.
        size: Height and width of the result: those of the annotation.
        scaled: Height and width at ratio 1.
        crop: Side of a window.
        stride: Distance from window to window.
        ratios: Scales, as multiples of `scaled`. Each is raised until the shorter side is at least the crop,
            but not beyond 8 crops along the longer side: a thin strip is padded instead.
        flip: Whether to add the mirrored image.
    """
    total: Tensor | None = None
    for ratio in ratios:
        shape = scaled_to(*scaled, ratio=ratio, crop=crop)
        images = pixels
        if shape != tuple(pixels.shape[2:]):
            images = interpolate(pixels, shape, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True) if flip else (False,):
            logits = slide(model, images.flip(3) if mirrored else images, crop=crop, stride=stride)
            probabilities = resized(logits.flip(3) if mirrored else logits, size).softmax(1)
            total = probabilities if total is None else total + probabilities
    if total is None:
        raise ValueError("no ratios to segment at")
    return total / (len(ratios) * (2 if flip else 1))
