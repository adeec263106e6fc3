"""SETR-PUP (arXiv 2012.15840, section 3.2): progressive upsampling, the head of the paper's table 14.

The BEiT authors did not release their version. Sizes are those of SETR's own code (fudan-zvg/SETR,
VisionTransformerUpHead with four convolutions): for patches of 16 pixels, three times a convolution and a
doubling of the resolution, then a convolution, the class layer, and a last doubling. There are two
differences. SETR's convolutions have a bias before their BatchNorm, which cancels it; these have none. SETR
also trains auxiliary heads; the BEiT paper does not mention any, and this has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from beit.segmentation.heads.layers import ConvNorm, resized
from beit.vit.layers import NORM_EPS, Conv2d

CHANNELS = 256


class SetrPupHead(nn.Module):
    """A norm, then convolutions; after each but the last, the resolution is doubled."""

    def __init__(self, dim: int, channels: int, classes: int, *, patch_size: int) -> None:
        """Build the modules, with uninitialised convolutions.

        Args:
            dim: Width of a token.
            channels: Width between the convolutions.
            classes: K.
            patch_size: A power of two from 4. The logits have half the resolution of the pixels.
        """
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        doublings = max(1, round(math.log2(patch_size)) - 1)
        self.convs = nn.ModuleList(
            ConvNorm(channels if number else dim, channels, 3) for number in range(doublings + 1)
        )
        self.conv_seg = Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Return logits [B, K, h, w] from the last of the maps [B, D, rows, columns].

        The generator is not used, because no channels are dropped.
        """
        inner = self.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for conv in self.convs[:-1]:
            inner = conv(inner)
            inner = resized(inner, (2 * inner.shape[2], 2 * inner.shape[3]))
        return self.conv_seg(self.convs[-1](inner))  # type: ignore[no-any-return]
