"""Configurations of training a tokenizer, and of encoding images with one."""

from __future__ import annotations

from dataclasses import dataclass, field

from beit.checks import CommandConfig, NotNegativeInt, Options, PositiveInt
from beit.config import OptimConfig, TokenizerConfig, ViewConfig
from beit.errors import UserError
from beit.tokenizer.config import PX_PER_TOKEN, DvaeConfig, DvaeTrainConfig
from pipelines.config.data import DataConfig
from pipelines.config.jobs import JobConfig
from pipelines.config.resources import ResourceConfig
from pipelines.schemes import StoragePath


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(CommandConfig):
    """Which views to tokenise, and where to write the tokens."""

    data: DataConfig = field(default_factory=DataConfig)

    image_size: PositiveInt = 224
    """Side of the model's patch view, in pixels: `model.image_size` of the pretraining."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)

    seed: NotNegativeInt = 0
    """Seed of the pretraining, from which its views are drawn."""

    epochs: PositiveInt = 1
    """Number of epochs whose views are tokenised. A longer pretraining repeats these views with other
    masks."""

    out: StoragePath = "tokens"
    """Folder or bucket URI for the tokens. An unfinished one is completed."""

    resources: ResourceConfig = field(default_factory=ResourceConfig)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(JobConfig):
    """Train a tokenizer: a discrete VAE with the structure of DALL-E's."""

    image_size: PositiveInt = 64
    """Side of the square views, in pixels."""

    dvae: DvaeConfig = field(default_factory=DvaeConfig)
    train: DvaeTrainConfig = field(default_factory=DvaeTrainConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    half: bool = False
    """Write the tokenizer's weights as float16, which halves the file."""

    def check_together(self, option: Options) -> None:
        """Refuse views whose side is no whole number of tokens."""
        super().check_together(option)
        if self.image_size % PX_PER_TOKEN:
            nearest = max(1, round(self.image_size / PX_PER_TOKEN)) * PX_PER_TOKEN
            raise UserError(
                f"{option('image_size')} is not a multiple of the {PX_PER_TOKEN} px that a token stands for",
                f"set {option('image_size', nearest)}",
            )
