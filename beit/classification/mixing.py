"""Mixup and cutmix: a batch is mixed with itself in reverse order (timm/data/mixup.py, batch mode)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from beit.classification.config import MixConfig


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How a batch is mixed."""

    share: float
    """Share of an image's own pixels in the mixed image, and of its own label in the target."""

    box: tuple[int, int, int, int] | None
    """Cutmix: top, bottom, left and right of the rectangle that comes from the other image. None: mixup,
    which blends the two images."""


def draw_mix(rng: np.random.Generator, config: MixConfig, side: int) -> Mix | None:
    """Draw how to mix a batch of images of side x side pixels; None: not at all.

    In cutmix, the centre of the rectangle is drawn uniformly, and `share` is computed from the part of the
    rectangle that lies within the image.
    """
    mixed, cut = rng.random() < config.probability, rng.random() < config.switch
    if not mixed or not (config.mixup or config.cutmix):
        return None
    cut = bool(config.cutmix) and (cut or not config.mixup)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share=share, box=None)
    length = int(side * math.sqrt(1 - share))
    y, x = rng.integers(side, size=2).tolist()
    top, bottom, left, right = (
        min(side, max(0, edge))
        for edge in (y - length // 2, y + length // 2, x - length // 2, x + length // 2)
    )
    return Mix(share=1 - (bottom - top) * (right - left) / side**2, box=(top, bottom, left, right))


def mix_pixels(pixels: Tensor, usable: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner, the image at the same place of the batch in reverse order.

    Args:
        pixels: Float [B, 3, H, W].
        usable: Bool [B]; where it is False, the image is not mixed into its partner.
        mix: From `draw_mix`.

    Returns:
        Pixels [B, 3, H, W], and the share [B] of each image's own label.
    """
    partnered = usable.flip(0)
    own = torch.where(partnered, mix.share, 1.0)
    if mix.box is None:
        weight = own[:, None, None, None]
        return pixels * weight + pixels.flip(0) * (1 - weight), own
    top, bottom, left, right = mix.box
    mixed = pixels.clone()
    other = pixels.flip(0)[:, :, top:bottom, left:right]
    mixed[:, :, top:bottom, left:right] = torch.where(
        partnered[:, None, None, None], other, mixed[:, :, top:bottom, left:right]
    )
    return mixed, own


def mixed_cross_entropy(logits: Tensor, labels: Tensor, own: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy [B] in nats with mixed and smoothed targets.

    Args:
        logits: Float [B, K].
        labels: int64 [B]; those of the partners are the same in reverse order.
        own: Float [B], share of an image's own label in its target.
        smoothing: Share of the target that is spread evenly over all classes.
    """
    logs = F.log_softmax(logits, 1)
    first = logs.gather(1, labels[:, None])[:, 0]
    second = logs.gather(1, labels.flip(0)[:, None])[:, 0]
    return -(1 - smoothing) * (own * first + (1 - own) * second) - smoothing * logs.mean(1)
