"""What all objectives over a Vision Transformer have in common: optimizer, schedule, what is random in a
step, checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from beit.config import OptimConfig, PixelConfig
from beit.objectives import optim
from beit.objectives.base import Objective, derive, worker_rank
from beit.plain import to_dict
from beit.vit import checkpoints
from beit.vit.model import VitModel

Model = TypeVar("Model", bound=VitModel)


class VitObjective(Objective, Generic[Model]):
    """An objective that trains a `Backbone` and its head by AdamW, and keeps them as a checkpoint that
    `load_model` reads.
    """

    purpose: ClassVar[int]
    """Keeps the generators of the objectives apart: [seed, purpose, step, worker]."""

    tokens_decay: ClassVar[bool] = False
    """Whether weight decay takes position embeddings and the class token too."""

    def __init__(
        self,
        model: Model,
        optim: OptimConfig,
        view: PixelConfig,
        *,
        layer_decay: float = 1.0,
        total_steps: int,
        seed: int,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Train a model.

        Args:
            model: With its first weights.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            layer_decay: How the learning rate falls from layer to layer, towards the pixels; see
                `optim.build_optimizer`.
            total_steps: Length of the schedule.
            seed: What is random about a batch is drawn from it.
            extra: JSON types to keep in the checkpoint's config.json, such as what the model began with.
        """
        super().__init__()
        self.model: Model = model
        self.optim_config, self.view = optim, view
        self.layer_decay, self.total_steps, self.seed = layer_decay, total_steps, seed
        self.extra = dict(extra or {})
        self._generator: torch.Generator | None = None

    def start_step(self, step: int) -> None:
        """Seed what is random on the device by step and worker, so that a resumed run draws what an unbroken
        one would.
        """
        device = next(self.model.parameters()).device
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        self._generator.manual_seed(derive(self.seed, self.purpose, step, worker_rank()))

    @property
    def generator(self) -> torch.Generator:
        """Draws on the device what is random in the current step; in step 0 before the first one
        was started.
        """
        if self._generator is None:
            self.start_step(0)
        assert self._generator is not None
        return self._generator

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the authors' groups, and a learning rate for each layer where `layer_decay` is not 1."""
        depth, tokens = self.model.config.depth, self.tokens_decay
        return optim.build_optimizer(
            self.model, self.optim_config, layer_decay=self.layer_decay, depth=depth, tokens_decay=tokens
        )

    def learning_rate(self, step: int) -> float:
        """Linear warmup, cosine decay."""
        return optim.learning_rate(step, self.optim_config, self.total_steps)

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint."""
        checkpoints.save_model(self.model, folder, extra={**self.extra, "view": to_dict(self.view)})

    def load(self, folder: Path) -> None:
        """Read weights back into this objective; its model must be the saved one."""
        checkpoints.load_weights(self.model, folder)
