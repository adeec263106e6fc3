"""Presets of segmentation, for a pretrained model or from scratch. Each value is given with its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from beit.config import ModelConfig, OptimConfig
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig
from pipelines.config.jobs import OutputConfig
from pipelines.config.supervised import SegmentConfig, SegmentDataConfig
from pipelines.presets.pretrain import BASE, LARGE


def quickstart() -> SegmentConfig:
    """A few minutes on two cores: a very small ViT on the built-in scenes, 64 px."""
    return _small_images(
        ModelConfig(image_size=64, patch_size=8, dim=128, depth=4, heads=4, drop_path=0.0),
        epochs=4,
        data=SegmentDataConfig(scenes=4000, val_scenes=500),
        # A scene is as large as the crop, and about two thirds of it are background: scaled up rather than
        # down, no crop drawn again.
        view=SegmentViewConfig(short_side=64, long_side=256, scale=(0.75, 1.5), most_of_one_class=1.0),
        # In 249 steps of 64 nothing but the background was found, in 1,000 steps of 16, the same images, more
        # is.
        optim=OptimConfig(global_batch_size=16, peak_lr=1e-3, min_lr=0.0, warmup_steps=100, clip_norm=None),
        output=OutputConfig(log_seconds=5.0),
    )


def camvid() -> SegmentConfig:
    """Street scenes of CamVid (11 classes, 11 is void) by a small model, in crops of 64 px of images twice as
    high.
    """
    return _small_images(
        ModelConfig(image_size=64, patch_size=8, dim=192, depth=6, heads=3),
        epochs=60,
        annotation=AnnotationConfig(classes=11, ignore_index=11),
        view=SegmentViewConfig(short_side=128, long_side=512),
        optim=OptimConfig(global_batch_size=32, peak_lr=2e-3, min_lr=0.0, warmup_steps=25, clip_norm=None),
    )


def _small_images(model: ModelConfig, **rest: object) -> SegmentConfig:
    """Our own recipe: the paper's head, narrower; learning rate and decay as for small images in
    classification.
    """
    config = SegmentConfig(head="setr-pup", channels=64, layer_decay=0.75, model=model)
    return replace(config, **rest)  # type: ignore[arg-type]


def ade20k() -> SegmentConfig:
    """BEiT-B with SETR-PUP on ADE20K as in the paper: 160,000 steps at 512 px."""
    # Table 14: rate 1e-3, decay 0.65, batch 16, warmup of 1,500 steps, linear, drop path 0.1, positions
    # resampled bilinearly.
    config = _ade20k(replace(BASE, image_size=512), lr=1e-3, decay=0.65)
    return replace(config, head="setr-pup", positions="bilinear")


def ade20k_upernet() -> SegmentConfig:
    """BEiT-B with UPerNet on ADE20K as released, straight from pretraining: 160,000 steps at 512 px."""
    # upernet_beit_base_12_512_slide_160k_ade20k_pt.py
    return _released(replace(BASE, image_size=512), lr=7e-4, decay=0.65)


def ade20k_upernet_22k() -> SegmentConfig:
    """BEiT-B with UPerNet on ADE20K as released, after intermediate fine-tuning: 160,000 steps at 512 px."""
    # upernet_beit_base_12_512_slide_160k_ade20k_pt2ft.py
    return _released(replace(BASE, image_size=512), lr=3e-5, decay=0.9)


def ade20k_upernet_22k_640() -> SegmentConfig:
    """BEiT-B with UPerNet on ADE20K as released, after intermediate fine-tuning, at 640 px: theirs has 53.6
    mIoU.
    """
    # upernet_beit_base_12_640_slide_160k_ade20k_pt2ft.py
    return _released(replace(BASE, image_size=640), lr=3e-5, decay=0.9)


def ade20k_upernet_large_22k() -> SegmentConfig:
    """BEiT-L with UPerNet on ADE20K as released, after intermediate fine-tuning: 160,000 steps at 512 px."""
    # upernet_beit_large_24_512_slide_160k_ade20k_pt2ft.py
    return _released(replace(LARGE, image_size=512, drop_path=0.2), lr=2e-5, decay=0.95)


def ade20k_upernet_large_22k_640() -> SegmentConfig:
    """BEiT-L with UPerNet on ADE20K as released, after intermediate fine-tuning, at 640 px: theirs has 56.7
    mIoU.
    """
    # upernet_beit_large_24_640_slide_160k_ade20k_pt2ft.py: 320,000 passes of 8 images, two a step; its warmup
    # of 3,000 is 1,500 steps.
    return _released(replace(LARGE, image_size=640, drop_path=0.2), lr=2e-5, decay=0.95)


def _released(model: ModelConfig, *, lr: float, decay: float) -> SegmentConfig:
    """The released code's backbone: a table of relative biases for each block, LayerScale from 0.1 (base) or
    1e-5 (large).
    """
    model = replace(model, position="relative-per-block", layer_scale=1e-5 if model.dim == LARGE.dim else 0.1)
    return _ade20k(model, lr=lr, decay=decay)


def _ade20k(model: ModelConfig, *, lr: float, decay: float) -> SegmentConfig:
    """Table 14, and microsoft/unilm, beit/semantic_segmentation: configs/_base_/datasets/ade20k.py
    (ade20k_640x640.py), configs/beit.
    """
    side = model.image_size
    return SegmentConfig(
        steps=160_000,
        layer_decay=decay,
        model=model,
        # Files have 0 for what is no class and 1 to 150 for classes.
        annotation=AnnotationConfig(classes=150, reduce_zero_label=True),
        # img_scale (2048, 512) or (2560, 640), ratio 0.5 to 2, cat_max_ratio 0.75, ImageNet's mean and std.
        view=SegmentViewConfig(short_side=side, long_side=4 * side),
        optim=OptimConfig(
            global_batch_size=16, peak_lr=lr, min_lr=0.0, warmup_steps=1500, weight_decay=0.05, clip_norm=None
        ),
    )


PRESETS: dict[str, Callable[[], SegmentConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        quickstart,
        camvid,
        ade20k,
        ade20k_upernet,
        ade20k_upernet_22k,
        ade20k_upernet_22k_640,
        ade20k_upernet_large_22k,
        ade20k_upernet_large_22k_640,
    )
}


def recipe_for(model: ModelConfig, kind: str) -> str:
    """Choose the preset whose recipe suits a model; `kind` is its checkpoint's: a classifier was fine-tuned
    already.
    """
    if model.image_size <= 128:
        return "quickstart" if model.dim <= 128 else "camvid"
    if model.position == "absolute":
        return "ade20k"
    if model.dim >= LARGE.dim:  # Straight from pretraining nothing is published for it.
        return "ade20k-upernet-large-22k"
    return "ade20k-upernet-22k" if kind == "classifier" else "ade20k-upernet"
