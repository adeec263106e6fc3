"""AdamW with the authors' parameter groups, and learning-rate schedules (arXiv 2106.08254, Table 12)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from beit.config import OptimConfig
from beit.errors import UserError

NO_DECAY = ("pos_embed", "cls_token")
EMBEDDING = ("patch_embed", "cls_token", "mask_token", "pos_embed")


def has_weight_decay(name: str, parameter: torch.Tensor, *, tokens: bool = False) -> bool:
    """Return whether weight decay applies to a parameter.

    As in the authors' code (microsoft/unilm, beit/optim_factory.py): not to parameters with one dimension
    (biases, gains of norms and LayerScale), and not to position embeddings and the class token unless
    `tokens`. It does apply to the mask token and to relative position biases.
    """
    return parameter.ndim > 1 and (tokens or name.rpartition(".")[2] not in NO_DECAY)


def layer_of(name: str, depth: int) -> int:
    """Return the layer that a parameter belongs to, for layer-wise learning-rate decay.

    As in the authors' code (microsoft/unilm, beit/optim_factory.py): 0 for the input (patch embedding, class
    token, mask token, positions), k + 1 for block k, depth + 1 for everything else: heads, norms after the
    blocks, a bias table that all blocks share.

    Args:
        name: From `named_parameters` of a `Backbone` or of a model with one as its attribute `backbone`.
        depth: Blocks of the backbone.
    """
    parts = name.removeprefix("backbone.").split(".")
    if parts[0] in EMBEDDING:
        return 0
    return int(parts[1]) + 1 if parts[0] == "blocks" else depth + 1


def build_optimizer(
    module: nn.Module,
    config: OptimConfig,
    *,
    layer_decay: float = 1.0,
    depth: int = 0,
    tokens_decay: bool = False,
) -> torch.optim.AdamW:
    """Return AdamW over a module's trainable parameters.

    It has one parameter group with weight decay and one without; with layer-wise decay, two for each layer.

    Args:
        module: A `Backbone`, or a model with one as its attribute `backbone`.
        config: The optimizer's config.
        layer_decay: d: the learning rate of layer i is d ** (depth + 1 - i) times the head's. Kept in each
            group as "lr_scale". 1: the same rate for all layers.
        depth: Number of blocks of the backbone; needed for a `layer_decay` other than 1.
        tokens_decay: Whether weight decay applies to position embeddings and the class token too.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = depth + 1 if layer_decay == 1 else layer_of(name, depth)
        decayed = has_weight_decay(name, parameter, tokens=tokens_decay)
        empty = {
            "params": [],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        groups.setdefault((layer, not decayed), empty)["params"].append(parameter)
    return torch.optim.AdamW(
        [groups[key] for key in sorted(groups)],
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of step 0, 1, ... of a run: linear warmup, then cosine decay.

    With W warmup steps and N = total_steps - W: first W equal steps from 0 to the peak, both included, then
    min + (peak - min) / 2 * (1 + cos(pi i / N)) for i = 0 .. N - 1. So two steps have the peak rate, and the
    minimum would come one step after the last. A run shorter than its warmup ends during the warmup;
    `check_schedule` refuses that for real runs.
    """
    warmup = config.warmup
    if step < warmup:
        return config.peak_lr * step / max(1, warmup - 1)
    decay = max(1, total_steps - warmup)
    share = min(1.0, (step - warmup) / decay)
    return config.min_lr + (config.peak_lr - config.min_lr) / 2 * (1 + math.cos(math.pi * share))


WARMUP_RATIO = 1e-6


def linear_learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of step 0, 1, ... of a segmentation run: linear warmup, linear decay.

    As in microsoft/unilm, beit/semantic_segmentation, through mmcv. The rate falls linearly from the peak at
    step 0 to the minimum at step N, one step after the last (mmcv's "poly" with power 1; the authors' minimum
    is 0). During the W warmup steps it is multiplied by a factor that rises linearly from 1e-6 at step 0 to 1
    at step W.
    """
    decayed = config.min_lr + (config.peak_lr - config.min_lr) * max(0.0, 1 - step / total_steps)
    if step < config.warmup:
        decayed *= 1 - (1 - step / config.warmup) * (1 - WARMUP_RATIO)
    return decayed


def check_schedule(config: OptimConfig, total_steps: int) -> None:
    """Refuse a warmup that is not shorter than the run.

    Raises:
        UserError: It names the option, the length of the run, and a warmup that fits.
    """
    if config.warmup >= total_steps:
        raise UserError(
            f"optim.warmup_steps={config.warmup} takes all of the run's {total_steps} steps: the learning "
            "rate would never decay",
            f"set optim.warmup_steps={total_steps // 20}",
        )
