"""RandAugment (arXiv 1909.13719), in timm's version `rand-m9-mstd0.5-inc1`: strength grows with magnitude.

From timm (timm/data/auto_augment.py): fifteen operations, drawn with replacement, each applied with
probability 0.5. Its magnitude is normal with mean 9 and standard deviation 0.5, clipped to [0, 10]. The names
of operations are timm's; Pillow does the work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from beit.classification.config import AugmentConfig

MOST = 10.0
"""The largest magnitude."""

Colour = tuple[int, int, int]


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill
    )


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Add to values below 128, which stay at most 255."""
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the first bits of each value.

    With no bits left the image is black, as in timm; Pillow's own function no longer accepts that.
    """
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


# (image, strength in [0, 1], sign of an operation that has two directions, colour for pixels from outside the
# image) -> image
Operation = Callable[[Image.Image, float, int, Colour], Image.Image]

OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, strength, sign, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, sign, fill: ImageOps.equalize(image),
    "Invert": lambda image, strength, sign, fill: ImageOps.invert(image),
    "Rotate": lambda image, strength, sign, fill: image.rotate(
        sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "PosterizeIncreasing": lambda image, strength, sign, fill: _posterize(image, 4 - int(4 * strength)),
    "SolarizeIncreasing": lambda image, strength, sign, fill: ImageOps.solarize(
        image, 256 - min(256, int(256 * strength))
    ),
    "SolarizeAdd": lambda image, strength, sign, fill: _solarize_add(image, min(128, int(110 * strength))),
    "ColorIncreasing": lambda image, strength, sign, fill: ImageEnhance.Color(image).enhance(
        _factor(strength, sign)
    ),
    "ContrastIncreasing": lambda image, strength, sign, fill: ImageEnhance.Contrast(image).enhance(
        _factor(strength, sign)
    ),
    "BrightnessIncreasing": lambda image, strength, sign, fill: ImageEnhance.Brightness(image).enhance(
        _factor(strength, sign)
    ),
    "SharpnessIncreasing": lambda image, strength, sign, fill: ImageEnhance.Sharpness(image).enhance(
        _factor(strength, sign)
    ),
    "ShearX": lambda image, strength, sign, fill: _affine(
        image, (1, sign * 0.3 * strength, 0, 0, 1, 0), fill
    ),
    "ShearY": lambda image, strength, sign, fill: _affine(
        image, (1, 0, 0, sign * 0.3 * strength, 1, 0), fill
    ),
    "TranslateXRel": lambda image, strength, sign, fill: _affine(
        image, (1, 0, sign * 0.45 * strength * image.width, 0, 1, 0), fill
    ),
    "TranslateYRel": lambda image, strength, sign, fill: _affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * strength * image.height), fill
    ),
}


def _factor(strength: float, sign: int) -> float:
    """Return the factor of one of Pillow's enhancements; 1 changes nothing."""
    return max(0.1, 1 + sign * 0.9 * strength)


def draw_operations(rng: np.random.Generator, config: AugmentConfig) -> list[tuple[str, float, int]]:
    """Draw (name, magnitude 0 to 10, sign) of each operation for one image, in order.

    How many random numbers are drawn depends on the config only.
    """
    names = list(OPERATIONS)
    drawn = []
    for _ in range(config.operations):
        which, applied, sign = (
            int(rng.integers(len(names))),
            rng.random() < config.probability,
            1 if rng.random() < 0.5 else -1,
        )
        magnitude = min(MOST, max(0.0, rng.normal(config.magnitude, config.magnitude_std)))
        if applied:
            drawn.append((names[which], magnitude, sign))
    return drawn


def randaugment(
    view: NDArray[np.uint8], rng: np.random.Generator, config: AugmentConfig, fill: Colour
) -> NDArray[np.uint8]:
    """Apply random operations to a view [H, W, 3]; `fill` is the colour for pixels from outside the image."""
    operations = draw_operations(rng, config)
    if not operations:
        return view
    image = Image.fromarray(view)
    for name, magnitude, sign in operations:
        image = OPERATIONS[name](image, magnitude / MOST, sign, fill)
    return np.asarray(image)
