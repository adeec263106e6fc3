"""AdamW with the authors' parameter groups, and the learning rate of every step (BEiT, arXiv 2106.08254,
Table 12).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from beit.config import OptimConfig
from beit.errors import UserError

NO_DECAY = ("pos_embed", "cls_token")
EMBEDDING = ("patch_embed", "cls_token", "mask_token", "pos_embed")


def decays(name: str, parameter: torch.Tensor, *, tokens: bool = False) -> bool:
    """Whether a parameter is drawn towards 0.

    As the authors have it (microsoft/unilm, beit/optim_factory.py): nothing with one dimension (biases, gains
    of norms and LayerScale), nor position embeddings, nor the class token, unless `tokens` do. The mask token
    and relative position biases do decay.
    """
    return parameter.ndim > 1 and (tokens or name.rpartition(".")[2] not in NO_DECAY)


def layer_of(name: str, depth: int) -> int:
    """The layer that a parameter belongs to, for layer-wise decay of the learning rate.

    As the authors have it (microsoft/unilm, beit/optim_factory.py): 0 for what makes tokens of patches
    (embedding, class and mask token, positions), k + 1 for block k, depth + 1 for all else: heads, norms
    behind the blocks, a bias table that all blocks share.

    Args:
        name: As `named_parameters` gives it, for a `Backbone` or a model that has one under the name
            `backbone`.
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
    """AdamW over a module's trainable parameters, in a group with and a group without decay; for layer-wise
    rates, two for each layer.

    Args:
        module: A `Backbone`, or a model with one under the name `backbone`.
        config: The optimizer's.
        layer_decay: d: the learning rate of layer i is d ** (depth + 1 - i) of the head's. Kept in each group
            as "lr_scale". 1: all alike.
        depth: Blocks of the backbone; needed for a decay other than 1.
        tokens_decay: Whether position embeddings and the class token do.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = depth + 1 if layer_decay == 1 else layer_of(name, depth)
        decayed = decays(name, parameter, tokens=tokens_decay)
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
    """Learning rate of step 0, 1, ... of a run.

    With W warmup steps and N = total_steps - W: from 0 to the peak in equal steps, both ends included, then
    min + (peak - min) / 2 * (1 + cos(pi i / N)) for i = 0 .. N - 1. So the peak is used twice, and the
    minimum only behind the end. A run shorter than its warmup keeps the warmup's slope and ends on it;
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
    """Learning rate of step 0, 1, ... of a run that segments (microsoft/unilm, beit/semantic_segmentation, by
    mmcv).

    Over all N steps from the peak to the minimum on a straight line, which step N would reach (poly with
    power 1; the authors' minimum is 0). In the W warmup steps that is multiplied by a factor that rises on a
    straight line from 1e-6 at step 0 to 1 at step W.
    """
    decayed = config.min_lr + (config.peak_lr - config.min_lr) * max(0.0, 1 - step / total_steps)
    if step < config.warmup:
        decayed *= 1 - (1 - step / config.warmup) * (1 - WARMUP_RATIO)
    return decayed


def check_schedule(config: OptimConfig, total_steps: int) -> None:
    """Refuse a warmup that leaves nothing of the run.

    Raises:
        UserError: Naming the option, the length of the run and a warmup that fits.
    """
    if config.warmup >= total_steps:
        raise UserError(
            (
                f"optim.warmup_steps={config.warmup} takes all of the run's {total_steps} steps: the "
                "learning "
                "rate would never decay"
            ),
            f"set optim.warmup_steps={total_steps // 20}",
        )
