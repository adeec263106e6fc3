"""Segmentation as an objective: a class for every pixel (BEiT, arXiv 2106.08254, table 14; microsoft/unilm, beit/semantic_segmentation)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from beit import checkpoints, optim
from beit.annotations import IGNORED
from beit.config import OptimConfig, PixelConfig, to_dict
from beit.mim import derive, normalise
from beit.objective import Objective
from beit.segmenter import Segmenter

AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss, beside 1 of the head's (the authors')."""

# Purpose that keeps this module's generators apart: [seed, purpose, step, worker].
DEVICE = 21


class SegmentObjective(Objective):
    """Cross-entropy of every pixel that is not ignored, of the head and, weighed less, of the auxiliary head.

    Weighed by pixels, so the loss is the mean over the pixels of the global batch. A batch norm's statistics are those of a worker's part
    of the batch, unless its norms are synchronised (see `beit.heads.layers.ConvNorm`); with UPerNet a part needs two images at least.
    """

    columns: ClassVar[tuple[str, ...]] = ("patch_view", "labels")

    def __init__(
        self,
        model: Segmenter,
        optim: OptimConfig,
        view: PixelConfig,
        *,
        layer_decay: float,
        total_steps: int,
        seed: int,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Train a model.

        Args:
            model: With its first weights.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            layer_decay: How the learning rate falls from layer to layer, towards the pixels; see `optim.build_optimizer`.
            total_steps: Length of the schedule.
            seed: Skipped branches and dropped channels are drawn from it.
            extra: JSON types to keep in the checkpoint's config.json, such as what the model began with.
        """
        super().__init__()
        self.model = model
        self.optim_config, self.view = optim, view
        self.layer_decay, self.total_steps, self.seed = layer_decay, total_steps, seed
        self.extra = dict(extra or {})
        self._generator: torch.Generator | None = None

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Pixels of the batch that are not ignored. An image or annotation that could not be decoded has none."""
        return float(np.count_nonzero(batch["labels"] != IGNORED))

    def start_step(self, step: int) -> None:
        """Seed what is random on the device by step and worker, so that a resumed run draws what an unbroken one would."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        worker = torch.distributed.get_rank() if distributed else 0
        device = self.model.backbone.cls_token.device
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        self._generator.manual_seed(derive(self.seed, DEVICE, step, worker))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "labels" int16 [B, H, W]: classes from 0, or IGNORED.

        Returns:
            "loss", float32: cross-entropies in nats, the auxiliary head's times 0.4, summed over the pixels that count. "main", float32:
            the head's alone. "correct", int64: pixels that count whose largest logit is their class's.
        """
        if self._generator is None and self.training:
            self.start_step(0)
        labels = batch["labels"].long()
        pixels = normalise(batch["patch_view"], self.view)
        auxiliary = None
        if self.training:
            assert self._generator is not None
            logits, auxiliary = self.model.training_logits(pixels, generator=self._generator)
        else:
            logits = self.model(pixels)
        loss = main = _summed(logits, labels)
        if auxiliary is not None:
            loss = main + AUXILIARY_WEIGHT * _summed(auxiliary, labels)
        # Where a label is IGNORED no prediction equals it.
        return {"loss": loss, "main": main.detach(), "correct": (logits.detach().argmax(1) == labels).sum()}

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the authors' groups, a learning rate for each layer."""
        return optim.build_optimizer(self.model, self.optim_config, layer_decay=self.layer_decay, depth=self.model.config.depth)

    def learning_rate(self, step: int) -> float:
        """Linear warmup, linear decay."""
        return optim.linear_learning_rate(step, self.optim_config, self.total_steps)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Of the augmented crops that are trained on: "loss" of the head in nats a pixel, without the auxiliary head's, and "accuracy"."""
        return {
            "loss": float(sums["main"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
        }

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint."""
        checkpoints.save_model(self.model, folder, extra={**self.extra, "view": to_dict(self.view)})

    def load(self, folder: Path) -> None:
        """Read weights back into this objective; its model must be the saved one."""
        checkpoints.load_weights(self.model, folder)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
