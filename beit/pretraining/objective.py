"""Masked image modelling as an objective: predict what is behind hidden patches (BEiT, arXiv 2106.08254,
section 2).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.config import AskedPatches, ModelConfig, OptimConfig, ViewConfig
from beit.images.pixels import normalise
from beit.objectives.vit import VitObjective
from beit.pretraining.model import Beit, hidden_slots
from beit.pretraining.targets import Target
from beit.vit import checkpoints

TARGETS_FILE = "targets.json"
PATHS = 2


class MimObjective(VitObjective[Beit]):
    """BEiT pretraining: the target's loss over the hidden patches, or over all."""

    purpose: ClassVar = PATHS

    def __init__(
        self,
        model: ModelConfig,
        optim: OptimConfig,
        view: ViewConfig,
        *,
        target: Target,
        asked: AskedPatches = "hidden",
        total_steps: int,
        seed: int,
        max_hidden: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the model with weights drawn from the seed.

        Args:
            model: Sizes and variant of the Vision Transformer.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            target: What is predicted of a patch.
            asked: Which patches the loss asks for.
            total_steps: Length of the schedule.
            seed: Weights and skipped branches are drawn from it.
            max_hidden: Most patches that a mask hides in training, `MaskConfig.budget(grid)`. None: looked up
                in every batch, as it always is in evaluation mode; a GPU is waited for.
            extra: JSON types to keep in the checkpoint's config.json, such as the tokenizer's name and
                digest.
        """
        first = Beit(model, target.outputs, target=target.kind, seed=seed)
        super().__init__(first, optim, view, total_steps=total_steps, seed=seed, extra=extra)
        self.target = target
        self.asked = asked
        self.max_hidden = max_hidden
        self._nothing_gathered = target.state()

    @property
    def slots(self) -> int | None:
        """Most patches that a mask hides. None: any number. Masks of an evaluation need not be those of the
        training.
        """
        return self.max_hidden if self.training else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Views, masks, the target's columns, and the status of images if masks do not tell which images
        count.
        """
        return ("patch_view", "mask", *self.target.columns, *(("status",) if self.asked == "all" else ()))

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Patches of the batch that the loss asks for."""
        mask = batch["mask"].reshape(len(batch["mask"]), -1)
        hidden = mask.sum(1)
        if self.slots is not None and hidden.size and hidden.max() > self.slots:
            raise ValueError(
                f"a mask hides {hidden.max()} patches, but the objective was built for at most "
                f"max_hidden={self.max_hidden}"
            )
        return (
            float((batch["status"] == 0).sum() * mask.shape[1])
            if self.asked == "all"
            else float(hidden.sum())
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], "mask" bool [B, N], True = hidden, and the target's
                columns ("tokens" int [B, N]). Where the loss asks for hidden patches, an image with an empty
                mask weighs nothing; where it asks for all, one whose "status", uint8 [B], is not 0.

        Returns:
            "loss", float32, and other sums of the target over the patches asked for. "hidden", int64: hidden
            patches. "patches", int64: all patches of the images that weigh something.
        """
        mask = batch["mask"].flatten(1)
        if self.asked == "all":
            positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
            asked = (batch["status"] == 0)[:, None].expand(mask.shape)
        else:
            positions, asked = hidden_slots(mask, self.slots)
        pixels = normalise(batch["patch_view"], self.view)
        outputs = self.model.predict(pixels, mask, positions, generator=self.generator).float()
        sums = self.target.sums(outputs, self.target.truth(batch, pixels, positions), asked)
        return {**sums, "hidden": mask.sum(), "patches": (asked.any(1) * mask.shape[1]).sum()}

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """The target's figures, and "hidden", the mean share of hidden patches. What is not defined
        is NaN.
        """
        return {
            **self.target.metrics(sums, weight),
            "hidden": float(sums["hidden"]) / max(1.0, float(sums["patches"])),
        }

    def unseen_metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Loss and accuracy with the baselines of the given samples alone."""
        target = copy.copy(self.target)
        target.load_state(self._nothing_gathered)
        return target.metrics(sums, weight)

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint, and the state of the target next to it."""
        super().save(folder)
        # Gathered on rank 0 only, so it is no buffer that workers would have to share.
        checkpoints.write_json(folder / TARGETS_FILE, self.target.state())

    def load(self, folder: Path) -> None:
        """Read weights and what the target has gathered back into this objective; its model must be the saved
        one.
        """
        super().load(folder)
        self.target.load_state(json.loads((folder / TARGETS_FILE).read_text()))
