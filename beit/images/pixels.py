"""Normalise the uint8 pixels of the stream for a model, on the training device."""

from __future__ import annotations

import torch
from torch import Tensor

from beit.config import PixelConfig


def normalise(images: Tensor, view: PixelConfig) -> Tensor:
    """Convert images uint8 [B, H, W, 3] to float32 [B, 3, H, W]: (value / 255 - `view.mean`) / `view.std`."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # Channel by channel, with plain numbers: a tensor of constants would have to be copied to the device
    # first, and that copy waits.
    for channel, mean, std in zip(pixels.unbind(1), view.mean, view.std, strict=True):
        channel.mul_(1 / (255 * std)).sub_(mean / std)
    return pixels
