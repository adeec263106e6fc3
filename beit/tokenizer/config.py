"""What the discrete VAE and its training are told. Imports nothing heavy, as `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from beit.checks import Constraint, NotNegativeFloat, Options, PositiveFloat, PositiveInt, PositiveShare
from beit.errors import UserError

PX_PER_TOKEN = 8
"""Three poolings by 2."""

GROUPS = 4
"""Groups of residual blocks, in the encoder as in the decoder."""


@dataclass(frozen=True, kw_only=True)
class DvaeConfig:
    """Size of a discrete VAE. Defaults: DALL-E's."""

    vocab_size: PositiveInt = 8192
    """Number of different visual tokens."""

    encoder_width: PositiveInt = 256
    """Channels of the encoder's first group; each later group has twice as many. A multiple of 4."""

    decoder_width: PositiveInt = 256
    """Channels of the decoder's last group; each earlier group has twice as many. A multiple of 4."""

    blocks: PositiveInt = 2
    """Residual blocks in each of the four groups."""

    bottleneck: PositiveInt = 128
    """Channels of the decoder's first layer: the size of a token's embedding."""

    def check_together(self, option: Options) -> None:
        """Refuse widths that blocks cannot divide by 4."""
        for name in ("encoder_width", "decoder_width"):
            if (width := getattr(self, name)) % 4:
                raise UserError(
                    f"{option(name)} is not a multiple of 4", f"set {option(name, -(-width // 4) * 4)}"
                )

    @property
    def gain(self) -> float:
        """Factor of every residual branch. Small, so that the sum over all blocks stays near the identity at
        first.
        """
        return 1 / (GROUPS * self.blocks) ** 2


@dataclass(frozen=True, kw_only=True)
class DvaeTrainConfig:
    """Schedules of the bound. Defaults: found at small scale (docs/log/tokenizers.md). Brackets: DALL-E."""

    kl_weight: NotNegativeFloat = 6.6
    """Weight beta of the divergence between a position's token distribution and the uniform one, at the end
    of its rise [6.6]."""

    kl_share: PositiveShare = 0.5
    """Share of the steps over which `kl_weight` rises from 0 [1/600]."""

    first_temperature: PositiveFloat = 1.0
    """Temperature of the relaxed tokens at the first step [1]."""

    last_temperature: PositiveFloat = 1 / 16
    """Temperature of the relaxed tokens at the end of its fall [1/16]."""

    temperature_share: PositiveShare = 0.6
    """Share of the steps over which the temperature falls [1/20]."""

    lr_share: PositiveShare = 1.0
    """Share of the steps over which the learning rate falls to `optim.min_lr`, where it stays [2/5]."""

    marginal_weight: NotNegativeFloat = 0.4
    """Reward for the entropy of the batch's mean token distribution, in nats. Keeps all of a small model's
    tokens in use [0]."""

    first_logit_std: PositiveFloat | None = 6.0
    """Standard deviation over artificial images that the first weights give every token's logit [None: as
    they are drawn]."""

    encoder_lr: PositiveFloat = 0.1
    """The encoder's learning rate, as a multiple of the decoder's: its tokens shall not move faster than the
    decoder learns them [1]."""

    ema_decay: (
        Annotated[
            float, Constraint(lambda value: 0 < value < 1, "is not between 0 and 1", "a number such as 0.999")
        ]
        | None
    ) = None
    """The tokenizer's weights are a running mean of the trained ones with this decay [0.999]. None: the
    trained ones."""

    def check_together(self, option: Options) -> None:
        """Refuse a temperature that would rise."""
        if self.last_temperature > self.first_temperature:
            raise UserError(
                f"{option('last_temperature')} is not between 0 and {option('first_temperature')}",
                f"set {option('last_temperature', f'{self.first_temperature / 16:.4g}')}",
            )
