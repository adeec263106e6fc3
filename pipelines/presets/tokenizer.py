"""Presets of tokenizer training. A preset is a function that returns a whole configuration; each value is
given with its source.
"""

from __future__ import annotations

from collections.abc import Callable

from beit.config import OptimConfig, ViewConfig
from beit.tokenizer.config import DvaeConfig, DvaeTrainConfig
from pipelines.config.data import DataConfig
from pipelines.config.tokenizer import TrainTokenizerConfig


def scenes64() -> TrainTokenizerConfig:
    """The tokenizer that ships with the package: 512 tokens, trained on the built-in scenes at 64 px."""
    return TrainTokenizerConfig(
        steps=3000,
        data=DataConfig(scenes=12_000),
        dvae=DvaeConfig(vocab_size=512, encoder_width=32, decoder_width=16, blocks=1, bottleneck=64),
        train=DvaeTrainConfig(),
        view=ViewConfig(min_area=0.4, jitter=0.0),
        optim=OptimConfig(
            global_batch_size=16, peak_lr=6e-3, min_lr=6e-5, warmup_steps=50, weight_decay=1e-4, clip_norm=1.0
        ),
        half=True,
    )


def photo64() -> TrainTokenizerConfig:
    """1,024 tokens for photographs of 64 px, in half an hour on two cores (docs/log/tokenizers.md has the
    comparison it comes from).
    """
    return TrainTokenizerConfig(
        steps=5000,
        dvae=DvaeConfig(vocab_size=1024, encoder_width=32, decoder_width=16, blocks=1, bottleneck=64),
        # Photographs need sharper distributions than scenes: less of the divergence, and so less of the
        # reward that keeps tokens in use.
        train=DvaeTrainConfig(kl_weight=0.3, marginal_weight=0.1),
        view=ViewConfig(min_area=0.4, jitter=0.0),
        optim=OptimConfig(
            global_batch_size=16, peak_lr=6e-3, min_lr=6e-5, warmup_steps=50, weight_decay=1e-4, clip_norm=1.0
        ),
        half=True,
    )


def photo112() -> TrainTokenizerConfig:
    """2,048 tokens for the 112 px token views of 224 px models: `photo64` with twice the depth and more
    width, for a GPU and a day.
    """
    return TrainTokenizerConfig(
        image_size=112,
        steps=100_000,
        dvae=DvaeConfig(vocab_size=2048, encoder_width=64, decoder_width=48, blocks=2, bottleneck=128),
        train=DvaeTrainConfig(kl_weight=0.3, marginal_weight=0.1),
        view=ViewConfig(min_area=0.4, jitter=0.0),
        optim=OptimConfig(
            global_batch_size=64,
            peak_lr=4e-3,
            min_lr=4e-5,
            warmup_steps=500,
            weight_decay=1e-4,
            clip_norm=1.0,
        ),
    )


def dalle() -> TrainTokenizerConfig:
    """DALL-E's, as published: 8,192 tokens, 3,000,000 steps of 512 images of 256 px (arXiv 2102.12092,
    section 2.1, appendix A).
    """
    steps = 3_000_000
    return TrainTokenizerConfig(
        image_size=256,
        steps=steps,
        dvae=DvaeConfig(),
        train=DvaeTrainConfig(
            kl_weight=6.6,
            kl_share=5_000 / steps,
            first_temperature=1.0,
            last_temperature=1 / 16,
            temperature_share=150_000 / steps,
            lr_share=1_200_000 / steps,
            # DALL-E's recipe has none of the settings for small models.
            marginal_weight=0.0,
            first_logit_std=None,
            encoder_lr=1.0,
            ema_decay=0.999,
        ),
        # Listing 1, but that the crop is resized by a bicubic filter instead of an area one.
        view=ViewConfig(short_side=(288, 384), jitter=0.0),
        optim=OptimConfig(
            global_batch_size=512,
            peak_lr=1e-4,
            min_lr=1.25e-6,
            warmup_steps=0,
            weight_decay=1e-4,
            clip_norm=None,
        ),
    )


PRESETS: dict[str, Callable[[], TrainTokenizerConfig]] = {
    preset.__name__: preset for preset in (scenes64, photo64, photo112, dalle)
}
