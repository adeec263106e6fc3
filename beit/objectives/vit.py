"""Base class of the objectives for a Vision Transformer: optimizer, schedule, generator, checkpoint."""

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
    """An objective that trains a backbone and its head with AdamW.

    `load_model` reads the checkpoints that it saves.
    """

    purpose: ClassVar[int]
    """[seed, purpose, step, worker] seeds the generator: no two objectives have the same purpose."""

    tokens_decay: ClassVar[bool] = False
    """Whether weight decay applies to position embeddings and the class token too."""

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
        """Take over a model to train.

        Args:
            model: With its initial weights.
            optim: Optimizer and schedule.
            view: Its mean and std normalise the pixels.
            layer_decay: Factor of the learning rate from each layer to the one before it, towards the pixels;
                see `optim.build_optimizer`.
            total_steps: Length of the schedule.
            seed: Seeds every random choice about a batch.
            extra: JSON types to keep in the checkpoint's config.json, such as the weights that training
                started from.
        """
        super().__init__()
        self.model: Model = model
        for name, parameter in model.named_parameters():
            if not (parameter.is_meta or torch.isfinite(parameter).all()):
                raise ValueError(
                    f"{name} holds values that are not finite: a model initialises its weights itself, by "
                    "beit.vit.backbone.initialise or as it likes"
                )
        self.optim_config, self.view = optim, view
        self.layer_decay, self.total_steps, self.seed = layer_decay, total_steps, seed
        self.extra = dict(extra or {})
        self._generator: torch.Generator | None = None

    def start_step(self, step: int) -> None:
        """Seed the device's generator from step and worker, so that a resumed run draws the same numbers."""
        device = next(self.model.parameters()).device
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        self._generator.manual_seed(derive(self.seed, self.purpose, step, worker_rank()))

    @property
    def generator(self) -> torch.Generator:
        """The device's generator for the current step; before the first `start_step`, that of step 0."""
        if self._generator is None:
            self.start_step(0)
        assert self._generator is not None
        return self._generator

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with the authors' parameter groups, and a rate per layer if `layer_decay` is not 1."""
        depth, tokens = self.model.config.depth, self.tokens_decay
        return optim.build_optimizer(
            self.model, self.optim_config, layer_decay=self.layer_decay, depth=depth, tokens_decay=tokens
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warmup, then cosine decay."""
        return optim.learning_rate(step, self.optim_config, self.total_steps)

    def save(self, folder: Path) -> None:
        """Write the model as a checkpoint."""
        checkpoints.save_model(self.model, folder, extra={**self.extra, "view": to_dict(self.view)})

    def load(self, folder: Path) -> None:
        """Read weights into the model, which must be of the kind and config that were saved."""
        checkpoints.load_weights(self.model, folder)
