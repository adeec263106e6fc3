"""The segmentation objective: a class for every pixel.

BEiT, arXiv 2106.08254, table 14; microsoft/unilm, beit/semantic_segmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from beit.images.pixels import normalise
from beit.objectives import optim
from beit.objectives.vit import VitObjective
from beit.segmentation.annotations import IGNORED
from beit.segmentation.model import Segmenter

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary head's loss; that of the main head is 1. The authors' value."""

# [seed, purpose, step, worker]: the purpose keeps this module's generator apart from others.
DEVICE = 21


class SegmentObjective(VitObjective[Segmenter]):
    """Cross-entropy of all pixels that are not ignored, for the main head and for the auxiliary head.

    A batch's weight is its number of such pixels, so the loss is the mean over the pixels of the global
    batch. A BatchNorm's statistics are those of one forward pass on one worker, or on all workers if the
    model was `synchronised` (beit/segmentation/heads/norms.py). With UPerNet that pass needs at least two
    images.
    """

    purpose: ClassVar = DEVICE
    columns: ClassVar[tuple[str, ...]] = ("patch_view", "labels")
    # The authors exclude these by name, but here their list lacks the backbone's prefix and so has no
    # effect.
    tokens_decay: ClassVar = True

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Return the number of pixels of the batch that are not ignored.

        An image that could not be decoded, or whose annotation could not be, has none.
        """
        return float(np.count_nonzero(batch["labels"] != IGNORED))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return losses and correct predictions, summed over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "labels" int16 [B, H, W]: classes from 0, or IGNORED.

        Returns:
            "loss", float32: cross-entropy in nats of the main head plus 0.4 times that of the auxiliary head.
            "main", float32: that of the main head alone. "correct", int64: pixels whose largest logit is that
            of their class. All are over pixels that are not ignored.
        """
        labels = batch["labels"].long()
        pixels = normalise(batch["patch_view"], self.view)
        auxiliary = None
        if self.training:
            logits, auxiliary = self.model.training_logits(pixels, generator=self.generator)
        else:
            logits = self.model(pixels)
        loss = main = _summed(logits, labels)
        if auxiliary is not None:
            loss = main + AUXILIARY_WEIGHT * _summed(auxiliary, labels)
        # Where a label is IGNORED no prediction equals it.
        return {"loss": loss, "main": main.detach(), "correct": (logits.detach().argmax(1) == labels).sum()}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warmup, then linear decay."""
        return optim.linear_learning_rate(step, self.optim_config, self.total_steps)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Return the main head's loss in nats per pixel and its accuracy, on the augmented training crops."""
        return {
            "loss": float(sums["main"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
        }


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
