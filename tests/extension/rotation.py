"""A task of one's own in a file of one's own: a model learns by how many quarter turns an image was
rotated.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from beit.config import ModelConfig, OptimConfig, ViewConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.objectives.vit import VitObjective
from beit.vit.backbone import Backbone, initialise
from beit.vit.layers import Linear
from pipelines import seeds
from pipelines.config.data import DataConfig
from pipelines.config.jobs import JobConfig
from pipelines.datasets import open_data, with_absolute_data
from pipelines.reports.page import Section, Text
from pipelines.reports.run import Report
from pipelines.stream.samples import SampleConfig, make_samples
from pipelines.training.task import Finished, Task
from pipelines.training.training import Training

TURN = 101
"""Purpose of the generator that draws the turn: none of `pipelines.seeds`."""


@dataclass(frozen=True, kw_only=True)
class RotationConfig(JobConfig):
    """Learn by how many quarter turns an image was rotated."""

    turns: int = 4
    """How many different turns there are: 2 or 4."""

    model: ModelConfig = field(default_factory=ModelConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def quickstart() -> RotationConfig:
    """A very small model on the built-in scenes."""
    return RotationConfig(
        steps=3,
        data=DataConfig(scenes=64),
        model=ModelConfig(image_size=64, patch_size=8, dim=32, depth=2, heads=2),
        optim=OptimConfig(global_batch_size=16, warmup_steps=1),
    )


@dataclass(frozen=True, kw_only=True)
class RotatedSamples:
    """Views as in pretraining, each rotated by a number of turns that its key decides, the number
    as its label.
    """

    views: SampleConfig
    turns: int

    seed = property(lambda self: self.views.seed)
    columns = property(lambda self: self.views.columns)
    cache = property(lambda self: None)
    row_bytes = property(lambda self: self.views.row_bytes)

    def make(self, batch):
        """Rotate the views of a batch."""
        samples = make_samples(batch, config=self.views)
        keys = zip(*(samples[name].tolist() for name in ("epoch", "unit", "row")), strict=True)
        labels = [int(seeds.generator(self.seed, TURN, *key).integers(self.turns)) for key in keys]
        turned = [
            np.rot90(view, 4 // self.turns * label)
            for view, label in zip(samples["patch_view"], labels, strict=True)
        ]
        return {**samples, "patch_view": np.stack(turned), "label": np.array(labels)}

    def reason(self, unit, row, status):
        """Say why an image cannot be used."""
        return self.views.reason(unit, row, status)


class RotationModel(Backbone):
    """A backbone and a linear layer on its class token."""

    kind = "rotation"

    def __init__(self, config: ModelConfig, turns: int) -> None:
        super().__init__(config)
        self.head = Linear(config.dim, turns)
        # Layers of this package leave their weights uninitialised: a model says how it begins.
        initialise(self, torch.Generator().manual_seed(0))

    @property
    def head_config(self) -> dict[str, Any]:
        return {"turns": self.head.out_features}

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> "RotationModel":
        return cls(config, head["turns"])

    def forward(self, pixels, *, generator=None):
        """Logits [B, turns] of pixels [B, 3, H, W]."""
        (tokens,) = self.features(pixels, generator=generator)
        return self.head(tokens[:, 0])


class RotationObjective(VitObjective[RotationModel]):
    """Cross-entropy of the turn."""

    purpose = 102
    columns = ("patch_view", "label", "status")

    def weight(self, batch):
        return float(np.count_nonzero(batch["status"] == 0))

    def forward(self, batch):
        usable = batch["status"] == 0
        logits = self.model(normalise(batch["patch_view"], self.view), generator=self.generator).float()
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        correct = (logits.detach().argmax(1) == batch["label"]) & usable
        return {"loss": torch.where(usable, loss, 0.0).sum(), "correct": correct.sum()}

    def metrics(self, sums, weight):
        return {name: float(sums[of]) / weight for name, of in (("loss", "loss"), ("accuracy", "correct"))}


def make_objective(config: RotationConfig, total_steps: int) -> RotationObjective:
    """Build the model and its loss, in a worker."""
    model = RotationModel(config.model, config.turns)
    return RotationObjective(model, config.optim, config.view, total_steps=total_steps, seed=config.seed)


class Rotation(Task[RotationConfig, Training[RotationConfig]]):
    """Learn by how many quarter turns an image was rotated."""

    name = "rotation"
    config_type = RotationConfig
    presets = {"quickstart": quickstart}  # noqa: RUF012

    def prepare(self, config, *, preset, say):
        """Open the images."""
        if config.turns not in (2, 4):
            raise UserError(f"--turns {config.turns} is neither 2 nor 4", "set --turns 4")
        config = with_absolute_data(config)
        source = open_data(config, image_size=config.model.image_size, say=say)
        total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
        views = SampleConfig(seed=config.seed, view=config.view, patch_px=config.model.image_size)
        return Training(
            job=self.name,
            config=config,
            preset=preset,
            source=source,
            samples=RotatedSamples(views=views, turns=config.turns),
            tokenizer=None,
            make_objective=functools.partial(make_objective, config, total_steps),
            optim=config.optim,
            total_steps=total_steps,
            inputs={"data.train": source.manifest.digest},
            shown=[("loss {:.3f}", "train/loss"), ("acc {:.1%}", "train/accuracy")],
        )

    def summary(self, training):
        """Say how many turns there are."""
        return [f"rotation: {training.config.turns} turns, chance {1 / training.config.turns:.0%}"]

    def report(self, finished: Finished[RotationConfig, Training[RotationConfig]]) -> Report:
        """Show the number of turns."""
        return Report(sections=[Section("Rotation", [Text(f"One of {finished.config.turns} turns.")])])
