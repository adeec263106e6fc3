"""One random crop of an image at two sizes: patch view for the Transformer, token view for the tokenizer.

This is the transform of BEiT's pretraining (microsoft/unilm, `beit/datasets.py` and `beit/transforms.py`):
colour jitter, flip, one random-resized crop; the crop is resized bicubically to the patch view, by Lanczos to
the token view. The authors' code jitters the whole image first and resizes the crop twice. Here the crop is
resized to the larger view first, then jittered, and the smaller view is made from the larger one. That gives
the same image to within a grey level (`python -m pipelines.tools.benchmark views` measures it) in a third of
the time. It works because jitter is nearly linear, so it may follow a resize; only its contrast step needs
something of the whole image, namely its mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from beit.config import ViewConfig
from beit.images.decode import Status, UndecodableImage, decode

__all__ = [
    "Status",
    "UndecodableImage",
    "View",
    "ViewParameters",
    "apply",
    "decode",
    "draw_parameters",
    "make_view",
]

CROP_TRIES = 10
FACTOR_UNIT = 128
"""Jitter factors are multiples of 1/128: a pixel times a factor of up to 2 then fits in 16 bits exactly."""

TORCH_HAS_LANCZOS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)

Jitter = Literal["brightness", "contrast", "saturation"]
ORDERS: tuple[tuple[Jitter, Jitter, Jitter], ...] = (
    ("brightness", "contrast", "saturation"),
    ("brightness", "saturation", "contrast"),
    ("contrast", "brightness", "saturation"),
    ("contrast", "saturation", "brightness"),
    ("saturation", "brightness", "contrast"),
    ("saturation", "contrast", "brightness"),
)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """Everything random about a view."""

    left: int
    """Left edge of the crop in the image before the flip, in pixels; so are `top`, `width` and `height`."""

    top: int
    width: int
    height: int

    flip: bool
    """Whether the crop is mirrored."""

    jitter: tuple[tuple[Jitter, int], ...]
    """The steps in order, each with its factor in units of 1/128 (128 changes nothing)."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One crop at two sizes."""

    patch_view: NDArray[np.uint8]
    """[P, P, 3]"""

    token_view: NDArray[np.uint8]
    """[T, T, 3]. The same array as `patch_view` if the two sizes are equal."""

    status: Status
    """DECODED, or why the views are all zeros."""


def make_view(
    encoded: bytes, rng: np.random.Generator, *, view: ViewConfig, patch_px: int, token_px: int
) -> View:
    """Decode an image and take one random crop of it at two sizes.

    An image that cannot be decoded gives views of zeros and the reason; no exception is raised.

    Args:
        encoded: The image file's bytes.
        rng: Source of all randomness. How many numbers are drawn from it does not depend on the image.
        view: Ranges of the random choices, and how to decode images that are not plain RGB.
        patch_px: Side P of the patch view.
        token_px: Side T of the token view.
    """
    try:
        image = decode(encoded, view)
    except UndecodableImage as problem:
        patch_view = np.zeros((patch_px, patch_px, 3), dtype=np.uint8)
        token_view = patch_view if token_px == patch_px else np.zeros((token_px, token_px, 3), dtype=np.uint8)
        return View(patch_view=patch_view, token_view=token_view, status=problem.status)
    parameters = draw_parameters(rng, width=image.shape[1], height=image.shape[0], view=view, side=patch_px)
    patch_view, token_view = apply(image, parameters, patch_px=patch_px, token_px=token_px)
    return View(patch_view=patch_view, token_view=token_view, status=Status.DECODED)


def draw_parameters(
    rng: np.random.Generator, *, width: int, height: int, view: ViewConfig, side: int
) -> ViewParameters:
    """Draw all random choices about a view, from the generator, the sizes of image and view, and the config.

    The crop is torchvision's random-resized crop: a share of the area from U(min, max), a log-uniform aspect
    ratio, ten tries, then the largest centre crop of an allowed aspect ratio. With `view.short_side` it is
    DALL-E's crop (arXiv 2102.12092, listing 1). Exactly 45 numbers are drawn in every case.
    """
    uniforms = rng.random(4 * CROP_TRIES + 5).tolist()
    flip, order, *factors = uniforms[:5]
    if view.short_side is None:
        left, top, crop_width, crop_height = _crop(uniforms[5:], width, height, view)
    else:
        left, top, crop_width, crop_height = _square(uniforms[5:], width, height, view.short_side, side)
    # Multiples of 1/128 within the range, both ends included.
    span = math.floor(view.jitter * FACTOR_UNIT)
    steps = zip(ORDERS[int(order * len(ORDERS))], factors, strict=True)
    jitter = tuple((step, FACTOR_UNIT - span + int(factor * (2 * span + 1))) for step, factor in steps)
    return ViewParameters(
        left=left, top=top, width=crop_width, height=crop_height, flip=flip < view.flip, jitter=jitter
    )


def _crop(uniforms: list[float], width: int, height: int, view: ViewConfig) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the random-resized crop."""
    log_aspect = math.log(view.aspect)
    for one in range(0, len(uniforms), 4):
        share, skew, right, down = uniforms[one : one + 4]
        area = width * height * (view.min_area + share * (view.max_area - view.min_area))
        aspect = math.exp(log_aspect * (2 * skew - 1))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return (
                int(right * (width - crop_width + 1)),
                int(down * (height - crop_height + 1)),
                crop_width,
                crop_height,
            )
    crop_width = min(width, round(height * view.aspect))
    crop_height = min(height, round(width * view.aspect))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _square(
    uniforms: list[float], width: int, height: int, short_side: tuple[int, int], side: int
) -> tuple[int, int, int, int]:
    """Return left, top, width and height of DALL-E's crop.

    That is a random square as large as the short side, scaled, and a random square of that.
    """
    scale, right, down, further_right, further_down = uniforms[:5]
    short = min(width, height)
    low, high = (min(short, pixels) for pixels in short_side)
    scaled = low + int(scale * (high - low + 1))
    crop = round(short * min(1, side / scaled))
    left = int(right * (width - short + 1)) + int(further_right * (short - crop + 1))
    return left, int(down * (height - short + 1)) + int(further_down * (short - crop + 1)), crop, crop


def apply(
    image: NDArray[np.uint8], parameters: ViewParameters, *, patch_px: int, token_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the two views that `parameters` describe.

    Args:
        image: uint8 [H, W, 3].
        parameters: Drawn for an image of this size.
        patch_px: Side P of the patch view.
        token_px: Side T of the token view.

    Returns:
        The patch view, uint8 [P, P, 3], and the token view, uint8 [T, T, 3]; one array if T is P.
    """
    crop = image[
        parameters.top : parameters.top + parameters.height,
        parameters.left : parameters.left + parameters.width,
    ]
    crop = crop.copy()  # Copying and resizing is faster than torch's resize of a part of a larger image.
    if token_px > patch_px:
        token_view = _recolour(_resize(crop, token_px, "lanczos"), image, parameters)
        return _resize(token_view, patch_px, "bicubic"), token_view
    patch_view = _recolour(_resize(crop, patch_px, "bicubic"), image, parameters)
    return patch_view, patch_view if token_px == patch_px else _resize(patch_view, token_px, "lanczos")


def _resize(image: NDArray[np.uint8], side: int, filter: Literal["bicubic", "lanczos"]) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to [side, side, 3] as Pillow does; where torch can, in a third of Pillow's time."""
    if filter == "lanczos" and not TORCH_HAS_LANCZOS:
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized: NDArray[np.uint8] = (
        interpolate(pixels, (side, side), mode=filter, antialias=True)[0].permute(1, 2, 0).numpy()
    )
    return resized


def _recolour(
    resized: NDArray[np.uint8], image: NDArray[np.uint8], parameters: ViewParameters
) -> NDArray[np.uint8]:
    """Jitter and flip a resized crop [side, side, 3] of `image` [H, W, 3]."""
    steps = [(step, factor) for step, factor in parameters.jitter if factor != FACTOR_UNIT]
    if not steps:
        return np.ascontiguousarray(resized[:, ::-1]) if parameters.flip else resized
    # The mean of the whole image is estimated from a grid of about 40 pixels along the shorter side.
    apart = max(1, min(image.shape[:2]) // 40)
    sample = image[apart // 2 :: apart, apart // 2 :: apart]
    side = resized.shape[0]
    # One plane per colour, the pixels of the sample after those of the crop: with this layout numpy works on
    # 16 values at once.
    planes = np.empty((3, side * side + sample.size // 3), dtype=np.uint16)
    planes[:, : side * side] = resized.reshape(-1, 3).T
    planes[:, side * side :] = sample.reshape(-1, 3).T
    _jitter(planes, steps, sample=sample.size // 3)
    recoloured = np.empty(resized.shape, dtype=np.uint8)
    for channel in range(3):
        plane = planes[channel, : side * side].reshape(side, side)
        np.copyto(recoloured[..., channel], plane[:, ::-1] if parameters.flip else plane, casting="unsafe")
    return recoloured


def _jitter(planes: NDArray[np.uint16], steps: list[tuple[Jitter, int]], *, sample: int) -> None:
    """Change brightness, contrast and saturation in place.

    Each step is Pillow's `ImageEnhance`: clipped to 0..255, truncated.

    Args:
        planes: uint16 [3, pixels], values up to 255.
        steps: The steps in order, with their factors in units of 1/128.
        sample: This many pixels at the end are a sample of the whole image; contrast is around their mean.
    """
    for step, factor in steps:
        if step == "brightness":
            _blend(planes, None, factor)
        elif step == "contrast":
            mean = int(_luma(planes[:, -sample:]).mean() + 0.5)
            _blend(planes, np.full(planes.shape[1], mean, dtype=np.uint16), factor)
        else:
            _blend(planes, _luma(planes), factor)


def _luma(planes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return ITU-R 601-2 grey, uint16 [pixels], values up to 255."""
    grey: NDArray[np.uint16] = planes[0] * np.uint16(77)
    grey += planes[1] * np.uint16(150)
    grey += planes[2] * np.uint16(29)
    grey += np.uint16(128)
    grey >>= np.uint16(8)
    return grey


def _blend(planes: NDArray[np.uint16], other: NDArray[np.uint16] | None, factor: int) -> None:
    """Set planes to other + (planes - other) * factor / 128, in place, clipped to 0..255 and truncated.

    No intermediate value exceeds 16 bits.

    Args:
        planes: uint16 [3, pixels], values up to 255.
        other: uint16 [pixels], values up to 255. None: black.
        factor: In units of 1/128, up to 256.
    """
    planes *= np.uint16(factor)
    if other is not None:
        share = other * np.uint16(abs(FACTOR_UNIT - factor))
        if factor <= FACTOR_UNIT:
            planes += share
        else:
            # A subtraction that stops at 0. With a number in place of an array, numpy's maximum takes eight
            # times as long.
            np.maximum(planes, share, out=planes)
            planes -= share
    planes >>= np.uint16(7)
    if factor > FACTOR_UNIT:
        np.clip(planes, np.uint16(0), np.uint16(255), out=planes)
