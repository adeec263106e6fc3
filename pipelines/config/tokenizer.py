"""The configurations of training a tokenizer and of encoding tokens with one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from beit.checks import not_negative, positive
from beit.config import TokenizerConfig, ViewConfig
from beit.errors import UserError
from pipelines.config.data import DataConfig
from pipelines.config.resources import ResourceConfig

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

from beit.config import OptimConfig
from beit.tokenizer.dvae import PX_PER_TOKEN, DvaeConfig
from beit.tokenizer.objective import DvaeTrainConfig
from pipelines.config.jobs import JobConfig

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Which views to tokenise, and where to write the tokens."""

    data: DataConfig = field(default_factory=DataConfig)

    image_size: int = 224
    """Side of the model's patch view, in pixels, as `model.image_size` of the pretraining."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)

    seed: int = 0
    """The seed of the pretraining: views come from it."""

    epochs: int = 1
    """Epochs whose views are tokenised. A longer pretraining goes through them again, with other masks."""

    out: str = "tokens"
    """Folder or bucket URI for the tokens. An unfinished one is gone on with."""

    resources: ResourceConfig = field(default_factory=ResourceConfig)

    def __post_init__(self) -> None:
        positive(self, "--", "image_size", "epochs")
        not_negative(self, "--", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(JobConfig):
    """Training a tokenizer: a discrete VAE in the structure of DALL-E's."""

    image_size: int = 64
    """Side of the square views, in pixels."""

    dvae: DvaeConfig = field(default_factory=DvaeConfig)
    train: DvaeTrainConfig = field(default_factory=DvaeTrainConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    half: bool = False
    """Write the tokenizer's weights as float16, for a smaller file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "--", "image_size")
        if self.image_size % PX_PER_TOKEN:
            raise UserError(
                (
                    f"--image-size {self.image_size} is not a multiple of the {PX_PER_TOKEN} px that a token "
                    "stands for"
                ),
                f"set --image-size {max(1, round(self.image_size / PX_PER_TOKEN)) * PX_PER_TOKEN}",
            )
