"""Presets of pretraining. A preset is a function that returns a whole configuration; each value is given with
its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from beit.config import MaskConfig, ModelConfig, OptimConfig, TokenizerConfig, ViewConfig
from pipelines.config.data import PretrainDataConfig
from pipelines.config.jobs import OutputConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.presets.find import find_preset

# The paper's section 3.1. Heads are 64 wide.
BASE = ModelConfig(dim=768, depth=12, heads=12)
LARGE = ModelConfig(dim=1024, depth=24, heads=16)


def quickstart() -> PretrainConfig:
    """A few minutes on two cores: a very small ViT on the built-in scenes, 64 px."""
    return PretrainConfig(
        epochs=4,
        data=PretrainDataConfig(scenes=4000),
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
    return _paper(ModelConfig(dim=192, depth=12, heads=3))


def small() -> PretrainConfig:
    """ViT-S/16 at 224 px, otherwise the paper's recipe."""
    return _paper(ModelConfig(dim=384, depth=12, heads=6))


def base() -> PretrainConfig:
    """ViT-B/16 as in the paper: 800 epochs of ImageNet-1k, 500,000 steps."""
    return _paper(BASE)


def large() -> PretrainConfig:
    """ViT-L/16 as in the paper: 800 epochs of ImageNet-1k, 500,000 steps."""
    return _paper(LARGE, clip_norm=1.0)


def base_300() -> PretrainConfig:
    """ViT-B/16 of the paper's ablations (tables 4 and 5): 300 epochs, 187,500 steps."""
    return replace(_paper(BASE), epochs=300)


def base_released() -> PretrainConfig:
    """ViT-B/16 as the released code builds it: relative position biases, LayerScale from 0.1."""
    return _paper(_released(BASE, 0.1))


def large_released() -> PretrainConfig:
    """ViT-L/16 as the released code builds it: relative position biases, LayerScale from 1e-5."""
    return _paper(_released(LARGE, 1e-5), clip_norm=1.0)


def base_22k() -> PretrainConfig:
    """ViT-B/16 as the released weights were made: 150 epochs of ImageNet-22k."""
    return _imagenet_22k(base_released())


def large_22k() -> PretrainConfig:
    """ViT-L/16 as the released weights were made: 150 epochs of ImageNet-22k."""
    return _imagenet_22k(large_released())


def _paper(model: ModelConfig, *, clip_norm: float = 3.0) -> PretrainConfig:
    """The recipe for ImageNet-1k (arXiv 2106.08254, section 3.1 and table 12; microsoft/unilm,
    beit/README.md).
    """
    return PretrainConfig(
        # Section 3.1: 500,000 steps, 800 epochs. The authors' loader leaves out what fills no batch:
        # 1,281,167 // 2048 = 625 steps.
        epochs=800,
        whole_steps=True,
        # Table 12: 224 px, patches of 16 px, drop path 0.1; absolute positions and no LayerScale (section
        # 3.1, appendix A).
        model=replace(model, image_size=224, patch_size=16, drop_path=0.1),
        # DALL-E's, on the same crop at 112 px: 14 x 14 tokens. It does not come with the package and has to
        # be converted first.
        tokenizer=TokenizerConfig(name="dalle", image_size=112),
        # Section 3.1: crop, flip, jitter 0.4; crops of 8 % and more, and ImageNet's mean and std as in the
        # released code's command.
        view=ViewConfig(
            min_area=0.08, flip=0.5, jitter=0.4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        # Section 2.3: about 40 % of 14 x 14 in blocks of at least 16; the released code's budget is 75.
        mask=MaskConfig(kind="blockwise", ratio=75 / 196),
        # Table 12. Warmup: 10 epochs of 625 steps. Eps: the released code's. Clipping: 3 for base, 1 for
        # large.
        optim=OptimConfig(
            global_batch_size=2048,
            peak_lr=1.5e-3,
            min_lr=1e-5,
            warmup_steps=6250,
            weight_decay=0.05,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            clip_norm=clip_norm,
        ),
    )


def _released(model: ModelConfig, layer_scale: float) -> ModelConfig:
    """The defaults of microsoft/unilm, beit/run_beit_pretraining.py, which the paper's appendix A adds to its
    ViT (table 5).
    """
    return replace(model, position="relative", layer_scale=layer_scale)


def _imagenet_22k(config: PretrainConfig) -> PretrainConfig:
    """The command in microsoft/unilm, beit/README.md: 150 epochs, warmup of 10,000 steps, mean and std 0.5,
    the code's default.
    """
    half = (0.5, 0.5, 0.5)
    return replace(
        config,
        epochs=150,
        view=replace(config.view, mean=half, std=half),
        optim=replace(config.optim, warmup_steps=10_000),
    )


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        quickstart,
        tiny64,
        small64,
        tiny,
        small,
        base,
        large,
        base_300,
        base_released,
        large_released,
        base_22k,
        large_22k,
    )
}


def pretrain_preset(name: str) -> PretrainConfig:
    """Return the configuration of a preset.

    Raises:
        UserError: For a name that is none, with the nearest one.
    """
    return find_preset(PRESETS, name, f"pretrain has no preset {name}")


def meant_for(name: str) -> tuple[int, str]:
    """Return the number of images and the name of the data set that a preset at 224 px is meant for."""
    if name.endswith("-22k"):
        return 14_197_122, "ImageNet-22k"  # image-net.org, fall 2011 release
    return 1_281_167, "ImageNet-1k"
