"""Configuration of a classifier's augmentation and mixing. Imports nothing heavy, like `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from beit.checks import BelowOne, NotNegativeFloat, NotNegativeInt, Options, Share, between
from beit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of a classifier's training views, in addition to crop and flip (timm:
    rand-m9-mstd0.5-inc1, erasing with probability 0.25).
    """

    operations: NotNegativeInt = 2
    """RandAugment operations per image (arXiv 1909.13719). 0: none."""

    magnitude: Annotated[float, between(0, 10)] = 9.0
    """Mean strength of the operations, from 0 to 10."""

    magnitude_std: NotNegativeFloat = 0.5
    """Standard deviation of the strength, which is drawn anew for each operation."""

    probability: Share = 0.5
    """Probability that a drawn operation is applied."""

    erase: Share = 0.25
    """Probability that a rectangle of the view is replaced by noise (random erasing, arXiv 1708.04896)."""

    erase_area: tuple[Share, Share] = (0.02, 1 / 3)
    """Smallest and largest area of the erased rectangle, as a share of the view."""

    def check_together(self, option: Options) -> None:
        """Refuse an empty range of areas."""
        if not 0 < self.erase_area[0] <= self.erase_area[1]:
            raise UserError(
                f"{option('erase_area')} is not two growing shares",
                f"set {option('erase_area', (0.02, 0.33))}",
            )


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mix two images of a batch, and their labels, into one."""

    mixup: NotNegativeFloat = 0.8
    """Alpha of mixup (arXiv 1710.09412): images are blended with weights drawn from Beta(alpha, alpha). 0: no
    mixup."""

    cutmix: NotNegativeFloat = 1.0
    """Alpha of cutmix (arXiv 1905.04899), which replaces a rectangle by the same one of the other image. 0:
    no cutmix."""

    probability: Share = 1.0
    """Probability that a batch is mixed."""

    switch: Share = 0.5
    """Probability that a mixed batch gets cutmix, not mixup, if both alphas are above 0."""

    smoothing: BelowOne = 0.1
    """Label smoothing: share of the target that is spread evenly over all classes. 0: none."""
