"""Configuration of annotations, views and sliding-window evaluation. Imports nothing heavy, like
`beit/config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.checks import (
    NotNegativeFloat,
    NotNegativeInt,
    Options,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)
from beit.config import PixelConfig
from beit.errors import UserError

Head = Literal["upernet", "setr-pup"]
"""The segmentation head. setr-pup: the paper's. upernet: the released code's."""


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """What the ids in annotation files mean."""

    classes: PositiveInt | None = None
    """Number of classes. None: found in the data; it must be known before annotations are decoded."""

    ignore_index: NotNegativeInt | None = 255
    """Id in the files of pixels that count neither in training nor in evaluation (CamVid's void: 11). None:
    all ids count."""

    reduce_zero_label: bool = False
    """Ignore pixels of id 0 too, and read id n as class n - 1. For ADE20K, whose files have 0 for pixels
    without a class."""

    values: tuple[NotNegativeInt, ...] | None = None
    """Ids in the files in the order of the classes: `0 255` reads id 0 as class 0 and id 255 as class 1, for
    masks that drawing tools write. These ids count even if one of them is `ignore_index`. None: the ids are
    the numbers of the classes."""

    def check_together(self, option: Options) -> None:
        """Refuse more classes than annotations can hold, and a class whose id would be ignored."""
        most = 1 << 15
        if self.classes is not None and self.classes > most:
            raise UserError(
                f"{option('classes')} does not fit 16 bits", f"set at most {option('classes', most)}"
            )
        if self.values is not None:
            self._check_values(option, self.values)
        elif self.classes is not None and self.classes > 255 and self.ignore_index == 255:
            raise UserError(
                f"{option('classes')} has a class of id 255, and {option('ignore_index')} leaves it out",
                f"set {option('ignore_index', None)}, or the id that stands for no class",
            )

    def _check_values(self, option: Options, values: tuple[int, ...]) -> None:
        """Refuse values that do not name each class once."""
        if len(set(values)) < len(values) or not values:
            raise UserError(f"{option('values')} does not name every id once", "list different ids")
        if self.reduce_zero_label:
            raise UserError(
                f"{option('values')} and {option('reduce_zero_label')} both say what the ids mean",
                f"set {option('reduce_zero_label', False)}",
            )
        if self.classes not in (None, len(values)):
            raise UserError(
                f"{option('values')} has {len(values)} ids for {option('classes')}",
                f"set {option('classes', len(values))}",
            )


@dataclass(frozen=True, kw_only=True)
class SegmentViewConfig(PixelConfig):
    """One random crop of an image and of its annotation (microsoft/unilm, beit/semantic_segmentation).
    Defaults: ADE20K's.
    """

    short_side: PositiveInt = 512
    """Length of the shorter side, in pixels, to which images are scaled up or down before the random factor
    `scale`."""

    long_side: PositiveInt = 2048
    """Largest length of the longer side, in pixels: images that `short_side` would make longer are scaled to
    this instead."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Range of the random factor by which images are scaled after that."""

    most_of_one_class: PositiveShare = 0.75
    """A crop is rejected if one class covers this share or more of its annotated pixels; at most ten crops
    are drawn. 1: the first crop is taken."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""

    distort: Share = 0.5
    """Probability of each of the four colour changes: brightness, contrast, saturation, hue."""

    brightness: NotNegativeFloat = 32.0
    """Largest change of brightness, in grey levels of 255, up or down."""

    contrast: tuple[NotNegativeFloat, NotNegativeFloat] = (0.5, 1.5)
    """Range of the factor on all pixel values; black stays black."""

    saturation: tuple[NotNegativeFloat, NotNegativeFloat] = (0.5, 1.5)
    """Range of the factor on the saturation (HSV)."""

    hue: NotNegativeFloat = 36.0
    """Largest rotation of the hue, in degrees. The authors: 18 steps of 2 degrees."""

    def check_together(self, option: Options) -> None:
        """Refuse ranges that are empty."""
        if self.long_side < self.short_side:
            raise UserError(
                f"{option('long_side')} is below {option('short_side')}",
                f"set {option('long_side', 4 * self.short_side)}",
            )
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(
                    f"{option(name, f'({low:g}, {high:g})')} does not grow",
                    f"set {option(name, f'({high:g}, {low:g})')}",
                )


@dataclass(frozen=True, kw_only=True)
class SlidingConfig:
    """Evaluation of whole images by sliding windows of the crop's size (see `beit.segmentation.sliding`)."""

    stride: PositiveInt | None = None
    """Distance between windows, in pixels. None: two thirds of the crop, as the authors have it (341 of 512,
    426 of 640)."""

    ratios: tuple[PositiveFloat, ...] = (1.0,)
    """Scales at which each image is evaluated; the probabilities are averaged. The authors' multi-scale test:
    0.5 0.75 1 1.25 1.5 1.75."""

    flip: bool = False
    """Evaluate the mirrored image too and average, as the authors' multi-scale test does."""

    def check_together(self, option: Options) -> None:
        """Refuse an evaluation at no scale."""
        if not self.ratios:
            raise UserError(f"{option('ratios', '')} names no scale to test at", f"set {option('ratios', 1)}")

    def stride_for(self, crop: int) -> int:
        """Pixels between windows of side `crop`."""
        return self.stride or max(1, crop * 2 // 3)

    @property
    def name(self) -> str:
        """Suffix for names of files that tells this variant of the evaluation from others: "" for one scale,
        not mirrored, with the authors' stride.
        """
        scales = "" if self.ratios == (1.0,) else "".join(f"-{ratio:g}x" for ratio in self.ratios)
        return scales + "-flip" * self.flip + (f"-stride{self.stride}" if self.stride is not None else "")
