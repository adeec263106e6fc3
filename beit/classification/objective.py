"""The classification objective: fine-tune a pretrained backbone, or train from scratch.

BEiT, arXiv 2106.08254, appendix H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.classification.config import MixConfig
from beit.classification.mixing import draw_mix, mix_pixels, mixed_cross_entropy
from beit.classification.model import Classifier
from beit.classification.views import erase
from beit.config import OptimConfig, ViewConfig
from beit.images.pixels import normalise
from beit.objectives.base import derive, worker_rank
from beit.objectives.vit import VitObjective

# [seed, purpose, step, worker]: the purpose keeps this module's generators apart from others.
DEVICE, MIX = 11, 12


class ClassifyObjective(VitObjective[Classifier]):
    """Cross-entropy of a classifier, with label smoothing, mixup and cutmix.

    Random choices about a sample come with it from the stream. Random choices about a batch are made here,
    seeded by (seed, step, worker): skipped branches and the noise of erased rectangles on the device, mixing
    on the host. Each micro-batch of each worker is mixed on its own. So results depend on how a global batch
    is divided, but not on when a run was interrupted.
    """

    purpose: ClassVar = DEVICE
    columns: ClassVar[tuple[str, ...]] = ("patch_view", "label", "erase", "status")

    def __init__(
        self,
        model: Classifier,
        optim: OptimConfig,
        view: ViewConfig,
        mix: MixConfig,
        *,
        layer_decay: float,
        total_steps: int,
        seed: int,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Take over a model to train.

        Args:
            model: With its initial weights.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            mix: Mixup, cutmix and label smoothing.
            layer_decay: Factor of the learning rate from each layer to the one before it, towards the pixels;
                see `optim.build_optimizer`.
            total_steps: Length of the schedule.
            seed: Seeds every random choice about a batch.
            extra: JSON types to keep in the checkpoint's config.json, such as the weights that training
                started from.
        """
        super().__init__(
            model, optim, view, layer_decay=layer_decay, total_steps=total_steps, seed=seed, extra=extra
        )
        self.mix = mix
        self._rng = np.random.default_rng(0)

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Return the number of images of the batch that could be decoded."""
        return float(np.count_nonzero(batch["status"] == 0))

    def start_step(self, step: int) -> None:
        """Seed the random choices about the batch, on the device and on the host."""
        super().start_step(step)
        self._rng = np.random.default_rng(derive(self.seed, MIX, step, worker_rank()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return loss and correct predictions, summed over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "label" int64 [B], "erase" int16 [B, 4], "status" uint8
                [B]. An image with a status other than 0 has weight 0 and is not mixed into another one.

        Returns:
            "loss", float32: cross-entropy in nats. "correct", int64: images whose largest logit is that of
            the label with the larger share.
        """
        usable = batch["status"] == 0
        pixels, own = self._prepare(batch["patch_view"], batch["erase"], usable)
        labels = batch["label"]
        logits = self.model(pixels, generator=self.generator).float()
        loss = mixed_cross_entropy(logits, labels, own, self.mix.smoothing if self.training else 0.0)
        main = torch.where(own >= 0.5, labels, labels.flip(0))
        correct = (logits.detach().argmax(1) == main) & usable
        return {"loss": torch.where(usable, loss, 0.0).sum(), "correct": correct.sum()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # The host's random numbers differ in every step; compiled code would be compiled again each time.
    def _prepare(self, views: Tensor, erased: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's input [B, 3, H, W], and the share [B] of each image's own label."""
        pixels = normalise(views, self.view)
        own = torch.ones(len(pixels), device=pixels.device)
        if not self.training:
            return pixels, own
        pixels = erase(pixels, erased, self.generator)
        mix = draw_mix(self._rng, self.mix, pixels.shape[-1])
        return (pixels, own) if mix is None else mix_pixels(pixels, usable, mix)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Return the loss in nats and the accuracy on the training images.

        These are augmented and mixed, so both figures look worse than on plain images.
        """
        return {
            "loss": float(sums["loss"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
        }
