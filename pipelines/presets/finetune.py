"""Presets of classification, for a pretrained model or from scratch. Each value is given with its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from beit.classification.config import AugmentConfig, MixConfig
from beit.config import ModelConfig, OptimConfig, ViewConfig
from pipelines.config.data import SupervisedDataConfig
from pipelines.config.jobs import OutputConfig
from pipelines.config.supervised import FinetuneConfig
from pipelines.presets.pretrain import BASE, LARGE


def quickstart() -> FinetuneConfig:
    """A few minutes on two cores: a very small ViT on the built-in scenes, 64 px."""
    return replace(
        _small_images(ModelConfig(image_size=64, patch_size=8, dim=128, depth=4, heads=4, drop_path=0.0)),
        epochs=4,
        data=SupervisedDataConfig(scenes=4000),
        # Scenes are small already: a crop of 8 % would show a few flat pixels. So few steps have no use for
        # mixed images.
        view=ViewConfig(min_area=0.4, jitter=0.0),
        augment=AugmentConfig(operations=0, erase=0.0),
        mix=MixConfig(mixup=0, cutmix=0),
        optim=OptimConfig(global_batch_size=64, peak_lr=2e-3, min_lr=1e-6, warmup_steps=None, clip_norm=None),
        output=OutputConfig(log_seconds=5.0),
    )


def tiny64() -> FinetuneConfig:
    """ViT 192/6/3 for images of 64 px."""
    return _small_images(ModelConfig(image_size=64, patch_size=8, dim=192, depth=6, heads=3))


def small64() -> FinetuneConfig:
    """ViT 384/12/6 for images of 64 px."""
    return _small_images(ModelConfig(image_size=64, patch_size=8, dim=384, depth=12, heads=6))


def _small_images(model: ModelConfig) -> FinetuneConfig:
    """Our own recipe: of the rates tried for batches of 64, a peak of 2e-3 with layer decay 0.75 was best."""
    return FinetuneConfig(
        epochs=20,
        warmup_epochs=1,
        layer_decay=0.75,
        centre=1.0,
        model=model,
        view=ViewConfig(min_area=0.2, jitter=0.0),
        optim=OptimConfig(
            global_batch_size=256, peak_lr=2e-3, min_lr=1e-6, warmup_steps=None, clip_norm=None
        ),
    )


def base() -> FinetuneConfig:
    """BEiT-B on ImageNet-1k as in the paper: 100 epochs, layer decay 0.65."""
    return _paper(BASE, epochs=100, warmup=20, decay=0.65, lr=4e-3)


def large() -> FinetuneConfig:
    """BEiT-L on ImageNet-1k as in the paper: 50 epochs, layer decay 0.75."""
    return _paper(LARGE, epochs=50, warmup=5, decay=0.75, lr=4e-3)


def large_released() -> FinetuneConfig:
    """BEiT-L on ImageNet-1k as the released code starts it from ImageNet-22k: 50 epochs at 1e-3."""
    return _paper(LARGE, epochs=50, warmup=5, decay=0.75, lr=1e-3, drop_path=0.2)


def base_384() -> FinetuneConfig:
    """Ten more epochs at 384 px for a base model fine-tuned at 224 px."""
    # The paper gives the epochs; the rate is the released code's for models that are fine-tuned already.
    return _paper(replace(BASE, image_size=384), epochs=10, warmup=1, decay=0.85, lr=2e-5, batch=512)


def large_384() -> FinetuneConfig:
    """Ten more epochs at 384 px for a large model fine-tuned at 224 px."""
    return _paper(replace(LARGE, image_size=384), epochs=10, warmup=1, decay=0.9, lr=2e-5, batch=512)


def cifar100() -> FinetuneConfig:
    """BEiT-B on CIFAR-100 as in the paper: 150 epochs, weight decay 0.3, no erasing."""
    config = _paper(BASE, epochs=150, warmup=20, decay=0.65, lr=4e-3, batch=512, weight_decay=0.3)
    return replace(config, augment=replace(config.augment, erase=0.0))


def base_on_22k() -> FinetuneConfig:
    """Intermediate fine-tuning of a base model on ImageNet-22k: 90 epochs, nothing mixed."""
    return _unmixed(
        _paper(BASE, epochs=90, warmup=5, decay=0.65, lr=3e-3, batch=4096, drop_path=0.2, clip=3.0)
    )


def large_on_22k() -> FinetuneConfig:
    """Intermediate fine-tuning of a large model on ImageNet-22k: 90 epochs, nothing mixed."""
    return _unmixed(
        _paper(LARGE, epochs=90, warmup=5, decay=0.75, lr=2e-3, batch=2048, drop_path=0.2, clip=1.0)
    )


def base_after_22k() -> FinetuneConfig:
    """ImageNet-1k after intermediate fine-tuning, base: 30 epochs at 2e-5."""
    return _unmixed(_paper(BASE, epochs=30, warmup=5, decay=0.85, lr=2e-5, batch=512, weight_decay=1e-8))


def large_after_22k() -> FinetuneConfig:
    """ImageNet-1k after intermediate fine-tuning, large: 30 epochs at 2e-5."""
    return _unmixed(
        _paper(LARGE, epochs=30, warmup=5, decay=0.9, lr=2e-5, batch=512, weight_decay=1e-8, drop_path=0.4)
    )


def vit_base() -> FinetuneConfig:
    """ViT-B from scratch, plainly supervised: 300 epochs of ImageNet-1k, crops and flips only (without ViT's
    dropout).
    """
    return _vit(BASE)


def vit_large() -> FinetuneConfig:
    """ViT-L from scratch, plainly supervised: 300 epochs of ImageNet-1k, crops and flips only (without ViT's
    dropout).
    """
    return _vit(LARGE)


def _vit(model: ModelConfig) -> FinetuneConfig:
    # arXiv 2010.11929, table 3 and appendix B.1: 3e-3 for 4096 images, 10,000 steps of warmup, decay 0.3,
    # clipping at 1, class token.
    config = _paper(
        model, epochs=300, warmup=0, decay=1.0, lr=3e-3, batch=4096, drop_path=0.0, weight_decay=0.3, clip=1.0
    )
    return replace(
        config,
        pooling="cls",
        warmup_epochs=None,
        augment=AugmentConfig(operations=0, erase=0.0),
        mix=MixConfig(mixup=0, cutmix=0, smoothing=0.0),
        optim=replace(config.optim, min_lr=0.0, warmup_steps=10_000),
    )


def deit_base() -> FinetuneConfig:
    """DeiT-B from scratch: 300 epochs of ImageNet-1k (without DeiT's repeated augmentation)."""
    # arXiv 2012.12877, table 9: 1e-3 for 1024 images, 5 epochs of warmup, class token.
    config = _paper(BASE, epochs=300, warmup=5, decay=1.0, lr=1e-3)
    return replace(config, pooling="cls", optim=replace(config.optim, min_lr=1e-5))


def _paper(
    model: ModelConfig,
    *,
    epochs: int,
    warmup: int,
    decay: float,
    lr: float,
    batch: int = 1024,
    drop_path: float = 0.1,
    weight_decay: float = 0.05,
    clip: float | None = None,
) -> FinetuneConfig:
    """The paper's appendix H and the released code's commands; of the paper's four rates the third, which the
    code uses for base.
    """
    return FinetuneConfig(
        epochs=epochs,
        warmup_epochs=warmup,
        layer_decay=decay,
        model=replace(model, drop_path=drop_path),
        optim=OptimConfig(
            global_batch_size=batch,
            peak_lr=lr,
            min_lr=1e-6,
            warmup_steps=None,
            weight_decay=weight_decay,
            clip_norm=clip,
        ),
    )


def _unmixed(config: FinetuneConfig) -> FinetuneConfig:
    """Labels stay smoothed."""
    return replace(config, mix=MixConfig(mixup=0, cutmix=0))


PRESETS: dict[str, Callable[[], FinetuneConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        quickstart,
        tiny64,
        small64,
        base,
        large,
        large_released,
        base_384,
        large_384,
        cifar100,
        base_on_22k,
        large_on_22k,
        base_after_22k,
        large_after_22k,
        deit_base,
        vit_base,
        vit_large,
    )
}


def recipe_for(model: ModelConfig, kind: str) -> str:
    """Choose the preset whose recipe suits a model; `kind` is its checkpoint's: a classifier was fine-tuned
    already.
    """
    if model.image_size <= 128:
        return "quickstart" if model.dim <= 128 else "tiny64" if model.dim <= 256 else "small64"
    size = "large" if model.dim >= LARGE.dim else "base"
    return f"{size}-after-22k" if kind == "classifier" else size
