"""Configuration of the discrete VAE and of its training. Imports nothing heavy, like `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from beit.checks import Constraint, NotNegativeFloat, Options, PositiveFloat, PositiveInt, PositiveShare
from beit.errors import UserError

PX_PER_TOKEN = 8
"""Side of the square of pixels that one token stands for: three poolings by 2."""

GROUPS = 4
"""Groups of residual blocks in the encoder, and in the decoder."""


@dataclass(frozen=True, kw_only=True)
class DvaeConfig:
    """Size of a discrete VAE. Defaults: DALL-E's."""

    vocab_size: PositiveInt = 8192
    """Size of the vocabulary: the number of different visual tokens."""

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
        """Factor of every residual branch. It is small, so that the sum over all blocks is near the identity
        at first.
        """
        return 1 / (GROUPS * self.blocks) ** 2


@dataclass(frozen=True, kw_only=True)
class DvaeTrainConfig:
    """Schedules of the evidence lower bound. The defaults were found at small scale (docs/log/tokenizers.md);
    DALL-E's values are in brackets.
    """

    kl_weight: NotNegativeFloat = 6.6
    """Final weight beta of the KL divergence between the token distribution at a position and the uniform one
    [6.6]."""

    kl_share: PositiveShare = 0.5
    """Share of the steps during which `kl_weight` rises from 0 to its final value [1/600]."""

    first_temperature: PositiveFloat = 1.0
    """Temperature of the relaxed tokens at the first step [1]."""

    last_temperature: PositiveFloat = 1 / 16
    """Temperature of the relaxed tokens once it has fallen [1/16]."""

    temperature_share: PositiveShare = 0.6
    """Share of the steps during which the temperature falls [1/20]."""

    lr_share: PositiveShare = 1.0
    """Share of the steps during which the learning rate falls to `optim.min_lr`; it then stays there
    [2/5]."""

    marginal_weight: NotNegativeFloat = 0.4
    """Weight of a reward for the entropy, in nats, of the batch's mean token distribution. It keeps all
    tokens of a small model in use [0]."""

    first_logit_std: PositiveFloat | None = 6.0
    """Standard deviation of every token's initial logit over artificial images: the encoder's output layer is
    scaled to it before the first step. None: not scaled [None]."""

    encoder_lr: PositiveFloat = 0.1
    """Learning rate of the encoder, as a multiple of the decoder's. Below 1, tokens do not change faster than
    the decoder learns them [1]."""

    ema_decay: (
        Annotated[
            float, Constraint(lambda value: 0 < value < 1, "is not between 0 and 1", "a number such as 0.999")
        ]
        | None
    ) = None
    """Decay rate of a running mean of the trained weights, which becomes the tokenizer [0.999]. None: the
    trained weights themselves become the tokenizer."""

    def check_together(self, option: Options) -> None:
        """Refuse a temperature that would rise."""
        if self.last_temperature > self.first_temperature:
            raise UserError(
                f"{option('last_temperature')} is not between 0 and {option('first_temperature')}",
                f"set {option('last_temperature', f'{self.first_temperature / 16:.4g}')}",
            )
