"""Segmentation as an objective: a class for every pixel (BEiT, arXiv 2106.08254, table 14; microsoft/unilm,
beit/semantic_segmentation).
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
"""Of the auxiliary head's loss, beside 1 of the head's (the authors')."""

# Purpose that keeps this module's generators apart: [seed, purpose, step, worker].
DEVICE = 21


class SegmentObjective(VitObjective[Segmenter]):
    """Cross-entropy of every pixel that is not ignored, of the head and, weighed less, of the auxiliary head.

    Weighed by pixels, so the loss is the mean over the pixels of the global batch. A BatchNorm's statistics
    are those of what goes through the model at once, on all workers if the model was `synchronised`
    (beit/segmentation/heads/norms.py); with UPerNet that must be two images at least.
    """

    purpose: ClassVar = DEVICE
    columns: ClassVar[tuple[str, ...]] = ("patch_view", "labels")
    # The authors' list of what is left out compares names without the backbone's prefix here (spec section
    # 7.1).
    tokens_decay: ClassVar = True

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Pixels of the batch that are not ignored. An image or annotation that could not be decoded has
        none.
        """
        return float(np.count_nonzero(batch["labels"] != IGNORED))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "labels" int16 [B, H, W]: classes from 0, or IGNORED.

        Returns:
            "loss", float32: cross-entropies in nats, the auxiliary head's times 0.4, summed over the pixels
            that count. "main", float32: the head's alone. "correct", int64: pixels that count whose largest
            logit is their class's.
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
        """Linear warmup, linear decay."""
        return optim.linear_learning_rate(step, self.optim_config, self.total_steps)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Of the augmented crops that are trained on: "loss" of the head in nats a pixel, without the
        auxiliary head's, and "accuracy".
        """
        return {
            "loss": float(sums["main"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
        }


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
