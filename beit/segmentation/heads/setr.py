"""SETR's progressive upsampling (arXiv 2012.15840, section 3.2), the head of the paper's segmentation results
(table 14).

The authors never released theirs. Sizes are those of SETR's own code (fudan-zvg/SETR, VisionTransformerUpHead
with four convolutions): for patches of 16 pixels three times convolution and doubling, then a convolution,
the classes, and a last doubling. Its convolutions have a bias before their BatchNorm, which takes it away
again; these have none. SETR also trains auxiliary heads; whether BEiT's authors did is not said, and this has
none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from beit.segmentation.heads.layers import ConvNorm, resized
from beit.vit.backbone import NORM_EPS, Conv2d

CHANNELS = 256


class SetrPupHead(nn.Module):
    """Norm, then convolutions with the resolution doubled behind each but the last."""

    def __init__(self, dim: int, channels: int, classes: int, *, patch_size: int) -> None:
        """Lay the modules out.

        Args:
            dim: Width of a token.
            channels: Between the convolutions.
            classes: K.
            patch_size: The logits are at half the resolution of pixels, for any power of two from 4.
        """
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        doublings = max(1, round(math.log2(patch_size)) - 1)
        self.convs = nn.ModuleList(
            ConvNorm(channels if number else dim, channels, 3) for number in range(doublings + 1)
        )
        self.conv_seg = Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Logits [B, K, h, w] from the last of the maps [B, D, rows, columns]. No channels are dropped, so
        nothing is drawn.
        """
        inner = self.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for conv in self.convs[:-1]:
            inner = conv(inner)
            inner = resized(inner, (2 * inner.shape[2], 2 * inner.shape[3]))
        return self.conv_seg(self.convs[-1](inner))  # type: ignore[no-any-return]
