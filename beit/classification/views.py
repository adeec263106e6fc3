"""Views for classification: augmented for training, the centre for evaluation.

As in microsoft/unilm, beit/datasets.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from beit.classification.config import AugmentConfig
from beit.classification.randaugment import randaugment
from beit.config import ViewConfig
from beit.images.decode import Status, UndecodableImage, decode

ERASE_TRIES = 10
ERASE_ASPECT = 0.3
"""An erased rectangle's height is between 0.3 and 1 / 0.3 times its width."""

MOST_ASPECT = 8
"""An image that is longer than this many times its width is cropped before it is resized."""

FULL_CENTRE_PX = 384
"""From this image size on, the authors evaluate on the whole short side; below it, on 0.875 of it."""


def augment(
    view: NDArray[np.uint8], rng: np.random.Generator, config: AugmentConfig, view_config: ViewConfig
) -> NDArray[np.uint8]:
    """Apply RandAugment to a training view [P, P, 3]; pixels from outside the view get the mean colour."""
    red, green, blue = (min(255, round(255 * mean)) for mean in view_config.mean)
    return randaugment(view, rng, config, (red, green, blue))


def draw_erased(rng: np.random.Generator, config: AugmentConfig, side: int) -> tuple[int, int, int, int]:
    """Draw the rectangle of a view to erase: top, left, height and width in pixels, all 0 for none.

    timm's random erasing (timm/data/random_erasing.py): a share of the area, a log-uniform aspect ratio, ten
    tries.
    """
    if rng.random() >= config.erase:
        return 0, 0, 0, 0
    for _ in range(ERASE_TRIES):
        area = rng.uniform(*config.erase_area) * side * side
        aspect = math.exp(rng.uniform(math.log(ERASE_ASPECT), -math.log(ERASE_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < side and 0 < width < side:
            return int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1)), height, width
    return 0, 0, 0, 0


def erase(pixels: Tensor, erased: Tensor, generator: torch.Generator) -> Tensor:
    """Replace rectangles by noise, with a normal number for each value (timm's mode "pixel").

    Args:
        pixels: Float [B, 3, H, W], normalised.
        erased: Int [B, 4] from `draw_erased`.
        generator: Source of the noise, on the device of `pixels`.
    """
    top, left, height, width = erased.long().T[:, :, None]
    rows = torch.arange(pixels.shape[2], device=pixels.device)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    down = (rows >= top) & (rows < top + height)
    across = (columns >= left) & (columns < left + width)
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], noise, pixels)


def centre_share(image_size: int) -> float:
    """Return the share of the short side that the authors evaluate on."""
    return 1.0 if image_size >= FULL_CENTRE_PX else 0.875


def make_centre_view(
    encoded: bytes, *, view: ViewConfig, image_size: int, share: float | None = None
) -> tuple[NDArray[np.uint8], Status]:
    """Decode an image and return its centre.

    The short side is resized bicubically to int(`image_size` / `share`), then the central square of
    `image_size` is cut out.

    Args:
        encoded: The image file's bytes.
        view: How to decode images that are not plain RGB.
        image_size: Side S of the view, in pixels.
        share: Share of the short side that the view covers. None: the authors' for this size.

    Returns:
        uint8 [S, S, 3] and DECODED; for an image that cannot be decoded, zeros and the reason.
    """
    try:
        image = decode(encoded, view)
    except UndecodableImage as problem:
        return np.zeros((image_size, image_size, 3), np.uint8), problem.status
    short = int(image_size / (centre_share(image_size) if share is None else share))
    image = _middle(image)
    height, width = image.shape[:2]
    size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    if size != (height, width):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        image = interpolate(pixels, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    top, left = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    return np.ascontiguousarray(image[top : top + image_size, left : left + image_size]), Status.DECODED


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the ends off a very long image: one of 10 x 10,000 pixels would be resized to 256 x 256,000."""
    height, width = image.shape[:2]
    most = MOST_ASPECT * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[top : top + most, left : left + most]
