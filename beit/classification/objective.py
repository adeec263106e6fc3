"""Classification as an objective: fine-tuning of a pretrained backbone, or training from scratch (BEiT, arXiv
2106.08254, appendix H).
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

# Purposes that keep this module's generators apart: [seed, purpose, step, worker].
DEVICE, MIX = 11, 12


class ClassifyObjective(VitObjective[Classifier]):
    """Cross-entropy between a classifier's logits and labels: smoothed, and mixed where images are.

    What is random about a sample comes with it from the stream; what is random about a batch is drawn here
    from (seed, step, worker): skipped branches and noise of erased rectangles on the device, mixing on the
    host. So it depends on how a global batch is divided among workers and micro-batches, each of which is
    mixed on its own, but not on when a run was interrupted.
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
        """Train a model.

        Args:
            model: With its first weights.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            mix: Mixup, cutmix and label smoothing.
            layer_decay: How the learning rate falls from layer to layer, towards the pixels; see
                `optim.build_optimizer`.
            total_steps: Length of the schedule.
            seed: What is random about a batch is drawn from it.
            extra: JSON types to keep in the checkpoint's config.json, such as what the model began with.
        """
        super().__init__(
            model, optim, view, layer_decay=layer_decay, total_steps=total_steps, seed=seed, extra=extra
        )
        self.mix = mix
        self._rng = np.random.default_rng(0)

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Images of the batch that could be decoded."""
        return float(np.count_nonzero(batch["status"] == 0))

    def start_step(self, step: int) -> None:
        """Seed what is random about the batch, on the device and on the host."""
        super().start_step(step)
        self._rng = np.random.default_rng(derive(self.seed, MIX, step, worker_rank()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "label" int64 [B], "erase" int16 [B, 4], "status" uint8
                [B]. An image with a status other than 0 weighs nothing, and no image is mixed with it.

        Returns:
            "loss", float32: cross-entropy in nats, summed over the images. "correct", int64: images whose
            largest logit is that of the label that weighs most in them.
        """
        usable = batch["status"] == 0
        pixels, own = self._prepare(batch["patch_view"], batch["erase"], usable)
        labels = batch["label"]
        logits = self.model(pixels, generator=self.generator).float()
        loss = mixed_cross_entropy(logits, labels, own, self.mix.smoothing if self.training else 0.0)
        main = torch.where(own >= 0.5, labels, labels.flip(0))
        correct = (logits.detach().argmax(1) == main) & usable
        return {"loss": torch.where(usable, loss, 0.0).sum(), "correct": correct.sum()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # What is drawn on the host changes with every step: compiled code would be compiled again.
    def _prepare(self, views: Tensor, erased: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] as the model gets them, and the share [B] of each image's own label."""
        pixels = normalise(views, self.view)
        own = torch.ones(len(pixels), device=pixels.device)
        if not self.training:
            return pixels, own
        pixels = erase(pixels, erased, self.generator)
        mix = draw_mix(self._rng, self.mix, pixels.shape[-1])
        return (pixels, own) if mix is None else mix_pixels(pixels, usable, mix)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Loss in nats and accuracy on the augmented and mixed images that are trained on, so both look worse
        than on plain ones.
        """
        return {
            "loss": float(sums["loss"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
        }
