"""Layers that the segmentation heads share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.vit.layers import Conv2d

DROPOUT = 0.1
"""Share of the channels that is dropped before a head's last layer in training (microsoft/unilm,
beit/semantic_segmentation)."""


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of side and stride 2, which doubles a map's resolution.

    It skips PyTorch's default initialisation; `initialise_head` or a checkpoint sets its values.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=2, stride=2)

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialised."""


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU: [B, c_in, h, w] -> [B, c_out, h, w].

    The authors' BatchNorm takes its statistics from all workers; for that, pass the model through
    `beit.segmentation.heads.norms.synchronised`.
    """

    def __init__(self, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the three layers."""
        return F.relu(self.bn(self.conv(maps)))


def drop_channels(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Set a tenth of each image's channels to 0 in maps [B, C, h, w].

    The others are scaled up, so that the expectation stays the same.
    """
    kept = (
        torch.rand(*maps.shape[:2], 1, 1, generator=generator, device=generator.device).to(maps.device)
        >= DROPOUT
    )
    return maps * kept / (1 - DROPOUT)


def resized(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize maps [B, C, h, w] bilinearly, with pixel values at pixel centres."""
    if maps.shape[2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def initialise_head(head: nn.Module, generator: torch.Generator) -> None:
    """Initialise a head's weights as mmseg does for the authors.

    Convolutions before a BatchNorm: He's rule (arXiv 1502.01852) over outgoing connections. The last layer:
    normal with standard deviation 0.01. Transposed convolutions: torch's default, uniform within
    1 / sqrt(outputs of a pixel), bias included. BatchNorms keep torch's initial values: weight 1, bias 0, no
    running statistics.
    """
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            last = name.rpartition(".")[2] == "conv_seg"
            outgoing = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            module.weight.normal_(std=0.01 if last else math.sqrt(2 / outgoing), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.ConvTranspose2d):
            assert module.bias is not None
            bound = 1 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
