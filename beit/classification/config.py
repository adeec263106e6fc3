"""What classification is told beside model and optimizer. Imports nothing heavy, as `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from beit.checks import BelowOne, NotNegativeFloat, NotNegativeInt, Options, Share, between
from beit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to a training view beside crop and flip when a classifier is trained (spec:
    rand-m9-mstd0.5-inc1, erasing 0.25).
    """

    operations: NotNegativeInt = 2
    """Operations of RandAugment (arXiv 1909.13719) for each image. 0: none."""

    magnitude: Annotated[float, between(0, 10)] = 9.0
    """How strong they are on average, 0 to 10."""

    magnitude_std: NotNegativeFloat = 0.5
    """Standard deviation of the magnitude, drawn anew for each operation."""

    probability: Share = 0.5
    """Each drawn operation is applied with this probability."""

    erase: Share = 0.25
    """Probability that a rectangle of the view is replaced by noise (random erasing, arXiv 1708.04896)."""

    erase_area: tuple[Share, Share] = (0.02, 1 / 3)
    """Smallest and largest share of the view that is erased."""

    def check_together(self, option: Options) -> None:
        """Refuse an empty range of areas."""
        if not 0 < self.erase_area[0] <= self.erase_area[1]:
            raise UserError(
                f"{option('erase_area')} is not two growing shares",
                f"set {option('erase_area', (0.02, 0.33))}",
            )


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How two images of a batch become one, with both their labels."""

    mixup: NotNegativeFloat = 0.8
    """Alpha of mixup (arXiv 1710.09412): the share of an image is drawn from Beta(alpha, alpha). 0: never."""

    cutmix: NotNegativeFloat = 1.0
    """Alpha of cutmix (arXiv 1905.04899), where a rectangle comes from the other image. 0: never."""

    probability: Share = 1.0
    """Probability that a batch is mixed."""

    switch: Share = 0.5
    """Probability that a mixed batch is cut rather than blended, where both alphas are above 0."""

    smoothing: BelowOne = 0.1
    """Share of the target that is spread over all classes (label smoothing)."""
