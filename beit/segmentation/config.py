"""What segmentation is told beside model and optimizer. Imports nothing heavy, as `beit/config.py`."""

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
"""What makes classes of the backbone's maps. setr-pup: the paper's. upernet: the released code's."""


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """What the ids in annotation files stand for."""

    classes: PositiveInt | None = None
    """Classes that are told apart. None: not known yet; where annotations are decoded it must be."""

    ignore_index: NotNegativeInt | None = 255
    """Id, as it stands in the files, of pixels that count neither in training nor in testing (CamVid's void:
    11). None: no such id."""

    reduce_zero_label: bool = False
    """Pixels of id 0 are ignored too, and id n stands for class n - 1 (ADE20K, whose files have 0 for all
    that is no class)."""

    def check_together(self, option: Options) -> None:
        """Refuse more classes than annotations can hold, and one that would be ignored."""
        most = 1 << 15
        if self.classes is not None and self.classes > most:
            raise UserError(
                f"{option('classes')} does not fit 16 bits", f"set at most {option('classes', most)}"
            )
        if self.classes is not None and self.classes > 255 and self.ignore_index == 255:
            raise UserError(
                f"{option('classes')} has a class of id 255, and {option('ignore_index')} leaves it out",
                f"set {option('ignore_index', None)}, or the id that stands for no class",
            )


@dataclass(frozen=True, kw_only=True)
class SegmentViewConfig(PixelConfig):
    """From an image and its annotation to one random crop of both (microsoft/unilm,
    beit/semantic_segmentation). Defaults: ADE20K's.
    """

    short_side: PositiveInt = 512
    """Before the random factor images are scaled, up or down, so that the shorter side has so many pixels."""

    long_side: PositiveInt = 2048
    """Images longer than this are scaled so that the longer side has so many pixels."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Then a factor is drawn between these two."""

    most_of_one_class: PositiveShare = 0.75
    """Crops of which one class has this share or more of the pixels that count are drawn again, until ten are
    drawn. 1: never again."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""

    distort: Share = 0.5
    """Probability of each of the four changes of colour."""

    brightness: NotNegativeFloat = 32.0
    """Most grey levels, of 255, that are added or taken away."""

    contrast: tuple[NotNegativeFloat, NotNegativeFloat] = (0.5, 1.5)
    """Factors of all values, black at 0."""

    saturation: tuple[NotNegativeFloat, NotNegativeFloat] = (0.5, 1.5)
    """Factors of the saturation (HSV)."""

    hue: NotNegativeFloat = 36.0
    """Most degrees that the hue turns. The authors: 18 steps of 2 degrees."""

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
    """How a model of one crop size segments whole images (see `beit.segmentation.sliding`)."""

    stride: PositiveInt | None = None
    """From window to window, in pixels. None: two thirds of the crop, as the authors have it (341 of 512, 426
    of 640)."""

    ratios: tuple[PositiveFloat, ...] = (1.0,)
    """Scales at which an image is looked at; probabilities are averaged. The authors' multi-scale test: 0.5
    0.75 1 1.25 1.5 1.75."""

    flip: bool = False
    """Look at the mirror image too, as the authors' multi-scale test does."""

    def check_together(self, option: Options) -> None:
        """Refuse a test at no scale."""
        if not self.ratios:
            raise UserError(f"{option('ratios', '')} names no scale to test at", f"set {option('ratios', 1)}")

    def stride_for(self, crop: int) -> int:
        """Pixels from window to window, for windows of `crop`."""
        return self.stride or max(1, crop * 2 // 3)

    @property
    def name(self) -> str:
        """What tells this way of testing from others, for names of files: "" for one scale, not mirrored, the
        authors' stride.
        """
        scales = "" if self.ratios == (1.0,) else "".join(f"-{ratio:g}x" for ratio in self.ratios)
        return scales + "-flip" * self.flip + (f"-stride{self.stride}" if self.stride is not None else "")
