"""A pretraining in readable lines, every derived number with its arithmetic: what a run says at its start,
and what `--dry-run` prints.
"""

from __future__ import annotations

import shlex

import numpy as np

from beit.config import OptimConfig
from beit.objectives.optim import learning_rate
from beit.pretraining.masking import draw_mask
from beit.pretraining.targets import TargetSetting, find_target
from pipelines.config.pretrain import PretrainConfig
from pipelines.presets.pretrain import PRESETS
from pipelines.sources import Manifest
from pipelines.stream.token_cache import TokenCache
from pipelines.training.training import MICRO_BATCH

MASKS_DRAWN = 1000


def data_line(manifest: Manifest) -> str:
    """What was found where `data.train` points."""
    return f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})"


def summary(
    config: PretrainConfig,
    *,
    preset: str,
    data: str,
    images: int,
    total_steps: int,
    scenes: bool,
    cache: TokenCache | None = None,
) -> list[str]:
    """What a run says at its start, with what is probably not meant.

    Args:
        config: The whole run.
        preset: Its recipe, which the batch is compared with.
        data: A line on the data.
        images: Images of an epoch.
        total_steps: Length of the schedule.
        scenes: Whether the images are the built-in scenes.
        cache: Where tokens are read from.
    """
    facts = _facts(config, data=data, images=images, total_steps=total_steps, cache=cache)
    return facts + warnings(config, preset=preset, total_steps=total_steps, scenes=scenes)


def _facts(
    config: PretrainConfig, *, data: str, images: int, total_steps: int, cache: TokenCache | None = None
) -> list[str]:
    model, optim = config.model, config.optim
    seen = total_steps * optim.global_batch_size
    gains = "" if model.layer_scale is None else f", LayerScale from {model.layer_scale:g}"
    lines = [
        f"model: ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, {model.grid} x "
        f"{model.grid} patches, {model.position} positions{gains}",
        target_line(config),
    ]
    if find_target(config.target.kind).needs_tokenizer:
        lines.append(
            f"tokenizer: {config.tokenizer.path or config.tokenizer.name}, {config.tokenizer.image_size} px "
            f"= {model.grid} x {model.grid} visual tokens of {config.tokenizer.image_size / model.grid:g} px"
        )
    if cache:
        lines.append(
            f"tokens: read from {cache.path}, {cache.epochs} epochs of views, computed in "
            f"{cache.description.precision}"
        )
    lines += [
        data,
        mask_line(config),
        (
            f"steps: {total_steps:,} x {optim.global_batch_size:,} images = {seen:,} = {seen / images:.4g} "
            "epochs"
        ),
    ]
    if cache and seen > cache.epochs * images:
        lines.append(f"views: the sets of {cache.epochs} epochs repeat; masks still change in every epoch")
    return lines


def target_line(config: PretrainConfig) -> str:
    """What is predicted of which patches."""
    what = find_target(config.target.kind).predicted(target_setting(config))
    return f"target: {what} of every {'hidden ' if config.target.positions == 'hidden' else ''}patch"


def target_setting(config: PretrainConfig) -> TargetSetting:
    """What a target may ask of a run, without its tokenizer, which need not be open."""
    return TargetSetting(
        target=config.target, model=config.model, view=config.view, mask=config.mask, seed=config.seed
    )


def mask_line(config: PretrainConfig) -> str:
    """How many patches of an image are hidden: at most, and on average, counted over masks."""
    mask, grid, patches = config.mask, config.model.grid, config.model.patches
    if not mask.budget(grid):
        return f"mask: none, all {patches} patches are visible"
    rng = np.random.default_rng(0)
    mean = float(np.mean([draw_mask(rng, mask, grid).sum() for _ in range(MASKS_DRAWN)]))
    return (
        f"mask: {mask.kind}, at most {mask.budget(grid)} of {patches} patches hidden, {mean:.1f} on "
        f"average = {mean / patches:.1%}"
    )


def warnings(config: PretrainConfig, *, preset: str, total_steps: int, scenes: bool) -> list[str]:
    """What is allowed, and probably not meant."""
    optim, lines = config.optim, warmup_warnings(config.optim, total_steps)
    theirs = PRESETS[preset]().optim if preset in PRESETS else optim
    if optim.global_batch_size != theirs.global_batch_size and optim.peak_lr == theirs.peak_lr:
        lines.append(
            f"warning: {optim.global_batch_size:,} images a step instead of {preset}'s "
            f"{theirs.global_batch_size:,}, at its optim.peak_lr="
            f"{optim.peak_lr:g}, which is never rescaled: in proportion to the batch, --optim.peak-lr "
            f"{optim.peak_lr * optim.global_batch_size / theirs.global_batch_size:.3g}"
        )
    target = find_target(config.target.kind)
    lines += target.warnings(target_setting(config))
    built_in = config.tokenizer.name if target.needs_tokenizer and config.tokenizer.path is None else ""
    if built_in.startswith("random"):
        lines.append(
            "warning: this tokenizer has random weights: good for measuring, its tokens carry no meaning"
        )
    if built_in == "scenes64" and config.data.train is not None and not scenes:
        lines.append(
            "warning: the tokens of scenes64 were learned from the built-in scenes and say little about "
            f"photographs: beit tokenizer train photo64 --data.train {shlex.quote(config.data.train)}, then "
            "--tokenizer.path runs/NAME"
        )
    return lines


def warmup_line(optim: OptimConfig, images: int) -> str:
    """The warmup of a run on so many images an epoch."""
    steps, batch = optim.warmup, optim.global_batch_size
    return f"warmup: {steps:,} steps x {batch:,} images = {steps * batch / images:.3g} epochs"


def warmup_warnings(optim: OptimConfig, total_steps: int) -> list[str]:
    """A line if the warmup takes the whole run."""
    warmup = f"the warmup of {optim.warmup:,} steps is not shorter than the run"
    return (
        [f"warning: {warmup}: the learning rate never reaches {optim.peak_lr:g}"]
        if optim.warmup >= total_steps
        else []
    )


def explain(config: PretrainConfig, *, preset: str, data: str, images: int, scenes: bool) -> list[str]:
    """All of it: the summary, and how steps, batches and the schedule come about.

    Raises:
        UserError: If the data is less than one step.
    """
    view, model, optim = config.view, config.model, config.optim
    total = config.total_steps(images, optim.global_batch_size)
    warmup = optim.warmup
    shown = sorted(
        {step for step in (0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1) if 0 <= step < total}
    )
    rates = ", ".join(f"{learning_rate(step, optim, total):.3g} at {step:,}" for step in shown)
    return [
        *_facts(config, data=data, images=images, total_steps=total),
        _epoch_line(config, images),
        _batch_line(config),
        warmup_line(optim, images),
        f"learning rate: {rates}; linear to {optim.peak_lr:g}, then a cosine to {optim.min_lr:g}",
        (
            f"optimizer: AdamW, betas {optim.beta1:g} and {optim.beta2:g}, eps {optim.eps:g}, weight decay "
            f"{optim.weight_decay:g}, "
        )
        + (
            "gradients not clipped"
            if optim.clip_norm is None
            else f"gradients clipped at norm {optim.clip_norm:g}"
        )
        + f", drop path {model.drop_path:g}",
        f"views: crops of {view.min_area:.0%} to {view.max_area:.0%} of the area, flip {view.flip:g}, jitter "
        f"{view.jitter:g}, mean {_numbers(view.mean)}, std {_numbers(view.std)}",
        *warnings(config, preset=preset, total_steps=total, scenes=scenes),
    ]


def _epoch_line(config: PretrainConfig, images: int) -> str:
    """From images to steps."""
    batch = config.optim.global_batch_size
    line = f"an epoch: {images:,} images / {batch:,} = {images / batch:.2f} steps"
    if config.steps is not None:
        return f"{line}; --steps {config.steps} says how many there are"
    if config.whole_steps and images >= batch:
        return (
            f"{line}, {images // batch:,} of them whole, x {config.epochs:g} epochs (--no-whole-steps: "
            "all of every epoch)"
        )
    return f"{line} x {config.epochs:g} epochs"


def _batch_line(config: PretrainConfig) -> str:
    """How a step's images are divided, as far as it is known before the cluster is seen."""
    batch, workers = config.optim.global_batch_size, config.resources.worker_range
    micro = config.resources.micro_batch_size or MICRO_BATCH
    if workers is None:
        return (
            f"a step: {batch:,} images over all workers (a worker for each GPU, else one), at most "
            f"{micro:,} at once on each"
        )
    if workers.elastic:
        return (
            f"a step: {batch:,} images over {workers.fewest} to {workers.most} workers, at most "
            f"{micro:,} at once"
        )
    share = batch // workers.fewest
    parts = -(-share // micro)
    if share % micro and parts > 1:
        return (
            f"a step: {batch:,} images = {workers} workers x {share:,}, at most {micro:,} at once, in "
            f"{parts} parts"
        )
    return (
        f"a step: {batch:,} images = {workers} workers x {min(share, micro):,} at once x {parts} accumulated"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
