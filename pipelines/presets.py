"""Complete runs by name. A preset is a function that returns a whole configuration; every value has its source."""

from __future__ import annotations

from collections.abc import Callable

from beit.config import MaskConfig, ModelConfig, OptimConfig, TokenizerConfig, ViewConfig
from beit.errors import UserError
from pipelines.config import DataConfig, OutputConfig, PretrainConfig


def quickstart() -> PretrainConfig:
    """A few minutes on two cores: a very small ViT on the built-in scenes, 64 px."""
    return PretrainConfig(
        epochs=4,
        data=DataConfig(scenes=4000),
        model=ModelConfig(image_size=64, patch_size=8, dim=128, depth=4, heads=4, drop_path=0.0),
        tokenizer=TokenizerConfig(name="scenes64", image_size=64),
        # Scenes are small already: a crop of 8 % would show a few flat pixels.
        view=ViewConfig(min_area=0.4),
        optim=OptimConfig(global_batch_size=64, peak_lr=2e-3, warmup_steps=25),
        output=OutputConfig(log_seconds=5.0),
    )


def tiny64() -> PretrainConfig:
    """ViT 192/6/3 for images of 64 px: 8 x 8 patches of 8 px."""
    return _small_images(dim=192, depth=6, heads=3)


def small64() -> PretrainConfig:
    """ViT 384/12/6 for images of 64 px: 8 x 8 patches of 8 px."""
    return _small_images(dim=384, depth=12, heads=6)


def _small_images(*, dim: int, depth: int, heads: int) -> PretrainConfig:
    return PretrainConfig(
        epochs=20,
        model=ModelConfig(image_size=64, patch_size=8, dim=dim, depth=depth, heads=heads),
        tokenizer=TokenizerConfig(name="scenes64", image_size=64),
        view=ViewConfig(min_area=0.2),
        optim=OptimConfig(global_batch_size=256, peak_lr=1.5e-3, warmup_steps=200),
    )


def tiny() -> PretrainConfig:
    """ViT-Ti/16 at 224 px, otherwise the paper's recipe."""
    return _paper(dim=192, depth=12, heads=3)


def small() -> PretrainConfig:
    """ViT-S/16 at 224 px, otherwise the paper's recipe."""
    return _paper(dim=384, depth=12, heads=6)


def base() -> PretrainConfig:
    """ViT-B/16 as in the paper: 800 epochs of ImageNet-1k, absolute positions (arXiv 2106.08254, section 3 and table 12)."""
    return _paper(dim=768, depth=12, heads=12)


def large() -> PretrainConfig:
    """ViT-L/16 as in the paper: 800 epochs of ImageNet-1k, gradients clipped at 1."""
    return _paper(dim=1024, depth=24, heads=16, clip_norm=1.0)


def _paper(*, dim: int, depth: int, heads: int, clip_norm: float = 3.0) -> PretrainConfig:
    """Table 12 of the paper: 2048 images a step, AdamW at 1.5e-3 with 10 epochs of warmup, weight decay 0.05, drop path 0.1."""
    return PretrainConfig(
        epochs=800,
        model=ModelConfig(dim=dim, depth=depth, heads=heads, drop_path=0.1),
        # Does not come with the package: it has to be converted first (docs/tokenizer.md).
        tokenizer=TokenizerConfig(name="dalle", image_size=112),
        view=ViewConfig(),
        mask=MaskConfig(),
        optim=OptimConfig(clip_norm=clip_norm),
    )


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    preset.__name__: preset for preset in (quickstart, tiny64, small64, tiny, small, base, large)
}


def pretrain_preset(name: str) -> PretrainConfig:
    """The configuration of a preset.

    Raises:
        UserError: For a name that is none, with the nearest one.
    """
    if name not in PRESETS:
        import difflib

        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"perhaps you meant {close[0]}; " if close else ""
        raise UserError(f"there is no preset {name}", f"{hint}presets: {', '.join(PRESETS)}, or the config.json of a run")
    return PRESETS[name]()
