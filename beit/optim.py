"""AdamW with the authors' parameter groups, and the learning rate of every step (BEiT, arXiv 2106.08254, Table 12)."""

from __future__ import annotations

import math

import torch
from torch import nn

from beit.config import OptimConfig
from beit.errors import UserError

NO_DECAY = ("pos_embed", "cls_token")


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is drawn towards 0.

    As the authors have it (microsoft/unilm, beit/optim_factory.py): nothing with one dimension (biases, gains of norms and LayerScale),
    nor position embeddings, nor the class token. The mask token and relative position biases do decay.
    """
    return parameter.ndim > 1 and name.rpartition(".")[2] not in NO_DECAY


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over a module's trainable parameters, in a group with and a group without decay."""
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if decays(name, parameter)]
    others = [parameter for name, parameter in trainable if not decays(name, parameter)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Learning rate of step 0, 1, ... of a run.

    With W warmup steps and N = total_steps - W: from 0 to the peak in equal steps, both ends included, then
    min + (peak - min) / 2 * (1 + cos(pi i / N)) for i = 0 .. N - 1. So the peak is used twice, and the minimum only behind the end.
    A run shorter than its warmup keeps the warmup's slope and ends on it; `check_schedule` refuses that for real runs.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.peak_lr * step / max(1, warmup - 1)
    decay = max(1, total_steps - warmup)
    share = min(1.0, (step - warmup) / decay)
    return config.min_lr + (config.peak_lr - config.min_lr) / 2 * (1 + math.cos(math.pi * share))


def check_schedule(config: OptimConfig, total_steps: int) -> None:
    """Refuse a warmup that leaves nothing of the run.

    Raises:
        UserError: Naming the option, the length of the run and a warmup that fits.
    """
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"optim.warmup_steps={config.warmup_steps} takes all of the run's {total_steps} steps: the learning rate would never decay",
            f"set optim.warmup_steps={total_steps // 20}",
        )
