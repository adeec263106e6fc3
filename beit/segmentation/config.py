"""What segmentation is told beside model and optimizer. Imports nothing heavy, as `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.checks import not_negative, positive, share
from beit.config import PixelConfig
from beit.errors import UserError

Head = Literal["upernet", "setr-pup"]
"""What makes classes of the backbone's maps. setr-pup: the paper's. upernet: the released code's."""


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """What the ids in annotation files stand for."""

    classes: int | None = None
    """Classes that are told apart. None: not known yet; where annotations are decoded it must be."""

    ignore_index: int | None = 255
    """Id, as it stands in the files, of pixels that count neither in training nor in testing (CamVid's void:
    11). None: no such id."""

    reduce_zero_label: bool = False
    """Pixels of id 0 are ignored too, and id n stands for class n - 1 (ADE20K, whose files have 0 for all
    that is no class)."""

    def __post_init__(self) -> None:
        positive(self, "annotation.", "classes")
        not_negative(self, "annotation.", "ignore_index")
        if self.classes is not None and self.classes > 1 << 15:
            raise UserError(
                f"annotation.classes={self.classes} does not fit 16 bits",
                f"set at most annotation.classes={1 << 15}",
            )
        if self.classes is not None and self.classes > 255 and self.ignore_index == 255:
            raise UserError(
                (
                    f"annotation.classes={self.classes} has a class of id 255, and "
                    "annotation.ignore_index=255 "
                    "leaves it out"
                ),
                "set annotation.ignore_index=None, or the id that stands for no class",
            )


@dataclass(frozen=True, kw_only=True)
class SegmentViewConfig(PixelConfig):
    """From an image and its annotation to one random crop of both (microsoft/unilm,
    beit/semantic_segmentation). Defaults: ADE20K's.
    """

    short_side: int = 512
    """Before the random factor images are scaled, up or down, so that the shorter side has so many pixels."""

    long_side: int = 2048
    """Images longer than this are scaled so that the longer side has so many pixels."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Then a factor is drawn between these two."""

    most_of_one_class: float = 0.75
    """Crops of which one class has this share or more of the pixels that count are drawn again, until ten are
    drawn. 1: never again."""

    flip: float = 0.5
    """Probability of a horizontal flip."""

    distort: float = 0.5
    """Probability of each of the four changes of colour."""

    brightness: float = 32.0
    """Most grey levels, of 255, that are added or taken away."""

    contrast: tuple[float, float] = (0.5, 1.5)
    """Factors of all values, black at 0."""

    saturation: tuple[float, float] = (0.5, 1.5)
    """Factors of the saturation (HSV)."""

    hue: float = 36.0
    """Most degrees that the hue turns. The authors: 18 steps of 2 degrees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "view.", "short_side", "long_side", "scale", "most_of_one_class")
        share(self, "view.", "flip", "distort", "most_of_one_class")
        not_negative(self, "view.", "brightness", "contrast", "saturation", "hue")
        if self.long_side < self.short_side:
            raise UserError(
                f"view.long_side={self.long_side} is below view.short_side={self.short_side}",
                f"set view.long_side={4 * self.short_side}",
            )
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(
                    f"view.{name}=({low:g}, {high:g}) does not grow", f"set view.{name}=({high:g}, {low:g})"
                )


@dataclass(frozen=True, kw_only=True)
class SlidingConfig:
    """How a model of one crop size segments whole images (see `beit.segmentation.sliding`)."""

    stride: int | None = None
    """From window to window, in pixels. None: two thirds of the crop, as the authors have it (341 of 512, 426
    of 640)."""

    ratios: tuple[float, ...] = (1.0,)
    """Scales at which an image is looked at; probabilities are averaged. The authors' multi-scale test: 0.5
    0.75 1 1.25 1.5 1.75."""

    flip: bool = False
    """Look at the mirror image too, as the authors' multi-scale test does."""

    def __post_init__(self) -> None:
        positive(self, "test.", "stride", "ratios")
        if not self.ratios:
            raise UserError("test.ratios= names no scale to test at", "set test.ratios=1")

    def stride_for(self, crop: int) -> int:
        """Pixels from window to window, for windows of `crop`.

        Raises:
            UserError: If the windows would leave pixels out.
        """
        if self.stride is not None and self.stride > crop:
            raise UserError(
                f"test.stride={self.stride} leaves pixels out between windows of {crop} px",
                f"set test.stride={crop * 2 // 3}",
            )
        return self.stride or max(1, crop * 2 // 3)

    @property
    def name(self) -> str:
        """What tells this way of testing from others, for names of files: "" for one scale, not mirrored, the
        authors' stride.
        """
        scales = "" if self.ratios == (1.0,) else "".join(f"-{ratio:g}x" for ratio in self.ratios)
        return scales + "-flip" * self.flip + (f"-stride{self.stride}" if self.stride is not None else "")
