"""Segment images of any size with a model of one crop size: windows that overlap, several scales, mirrored.

As the released code tests (microsoft/unilm, beit/semantic_segmentation, by mmseg): windows of 512 pixels 341 apart, logits averaged where
they overlap; ratios 0.5 to 1.75 with flip, probabilities averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from beit.heads.layers import resized

MOST_CROPS = 8
"""Crops along the longer side of an image that is scaled up to the crop: one of 10 x 1000 pixels would take 100."""

# Float [B, 3, crop, crop] -> logits [B, K, crop, crop]
Model = Callable[[Tensor], Tensor]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: `stride` apart, the last moved back so that it ends with the image."""
    last = max(0, length - crop)
    return [*range(0, last, stride), last]


def slide(model: Model, pixels: Tensor, *, crop: int, stride: int) -> Tensor:
    """Logits [B, K, H, W], averaged over the windows that a pixel lies in.

    Args:
        model: Sees windows, all of the crop's size.
        pixels: Float [B, 3, H, W], normalised. Smaller sides are padded with 0, the mean colour, below and to the right.
        crop: Side of a window.
        stride: From window to window, at most the crop.
    """
    if not 0 < stride <= crop:
        raise ValueError(f"windows of {crop} pixels that are {stride} apart leave pixels out; the stride must be 1 to {crop}")
    height, width = pixels.shape[2:]
    pixels = pad(pixels, (0, max(0, crop - width), 0, max(0, crop - height)))
    total: Tensor | None = None
    count = pixels.new_zeros(pixels.shape[2:], dtype=torch.float32)
    for top in window_starts(pixels.shape[2], crop, stride):
        for left in window_starts(pixels.shape[3], crop, stride):
            window = (..., slice(top, top + crop), slice(left, left + crop))
            logits = model(pixels[window]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *pixels.shape[2:])
            total[window] += logits
            count[window] += 1
    assert total is not None
    return (total / count)[..., :height, :width]


def scaled_to(height: int, width: int, *, ratio: float, crop: int) -> tuple[int, int]:
    """Height and width of an image at a scale, as `segment` raises it."""
    factor = max(ratio, min(crop / min(height, width), MOST_CROPS * crop / max(height, width)))
    return round(height * factor), round(width * factor)


def segment(
    model: Model,
    pixels: Tensor,
    *,
    size: tuple[int, int],
    crop: int,
    stride: int,
    ratios: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Probabilities [B, K, height, width], averaged over scales and, if asked, over the image and its mirror image.

    Args:
        model: Sees windows, all of the crop's size, in evaluation mode.
        pixels: Float [B, 3, H, W], normalised: the images as `whole_view` scales them.
        size: Height and width of the result: those of the annotation.
        crop: Side of a window.
        stride: From window to window.
        ratios: Scales, as multiples of H and W. Each is raised so that the shorter side is at least the crop, unless the longer one would
            have more than 8 crops: a thin strip is padded.
        flip: Add the mirror image.
    """
    total: Tensor | None = None
    height, width = pixels.shape[2:]
    for ratio in ratios:
        scaled_size = scaled_to(height, width, ratio=ratio, crop=crop)
        scaled = pixels
        if scaled_size != (height, width):
            scaled = interpolate(pixels, scaled_size, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True) if flip else (False,):
            logits = slide(model, scaled.flip(3) if mirrored else scaled, crop=crop, stride=stride)
            probabilities = resized(logits.flip(3) if mirrored else logits, size).softmax(1)
            total = probabilities if total is None else total + probabilities
    if total is None:
        raise ValueError("no ratios to segment at")
    return total / (len(ratios) * (2 if flip else 1))
