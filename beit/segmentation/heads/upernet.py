"""UPerNet (arXiv 1807.10221) on a feature pyramid, as in microsoft/unilm, beit/semantic_segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.config import ModelConfig
from beit.segmentation.heads.layers import ConvNorm, ConvTranspose2d, drop_channels, resized
from beit.vit.backbone import Backbone
from beit.vit.layers import Conv2d

POOL_SIDES = (1, 2, 3, 6)
AUXILIARY_CHANNELS = 256
AUXILIARY_MAP = 2
"""Index of the map that the auxiliary head reads: the one at the resolution of the patch grid."""


class PyramidBackbone(Backbone):
    """A backbone without final norm that makes a pyramid of four maps.

    Their resolutions are 4, 2, 1 and 1/2 times that of the patch grid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, with_norm=False)
        dim = config.dim
        self.fpn1 = nn.Sequential(ConvTranspose2d(dim), nn.BatchNorm2d(dim), nn.GELU(), ConvTranspose2d(dim))
        self.fpn2 = nn.Sequential(ConvTranspose2d(dim))

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Resize four maps [B, D, rows, columns] to 4, 2, 1 and 1/2 times their resolution."""
        return [self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], F.max_pool2d(maps[3], 2)]


class _DecodeHead(nn.Module):
    """The last layers of both heads: dropped channels in training, then `conv_seg` to the logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_seg = Conv2d(channels, classes, 1)

    def classify(self, maps: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, K, h, w] from maps [B, channels, h, w].

        In training mode the generator decides which channels are dropped.
        """
        if self.training:
            if generator is None:
                raise ValueError("a head in training mode needs a generator to draw dropped channels from")
            maps = drop_channels(maps, generator)
        return self.conv_seg(maps)  # type: ignore[no-any-return]


class UperHead(_DecodeHead):
    """Pool the coarsest map at several sides, then merge all maps from coarse to fine."""

    def __init__(self, dim: int, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNorm(dim, channels, 1)) for side in POOL_SIDES
        )
        self.bottleneck = ConvNorm(dim + len(POOL_SIDES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, channels, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(3))
        self.fpn_bottleneck = ConvNorm(4 * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Return logits [B, K, h, w] at the first map's resolution, from four maps, fine to coarse."""
        coarsest = maps[-1]
        pooled = [resized(pool(coarsest), coarsest.shape[2:]) for pool in self.psp_modules]
        joined = [self.bottleneck(torch.cat([coarsest, *pooled], 1))]
        for lateral, finer in zip(reversed(self.lateral_convs), reversed(maps[:-1]), strict=True):
            joined.insert(0, lateral(finer) + resized(joined[0], finer.shape[2:]))
        smoothed = [conv(each) for conv, each in zip(self.fpn_convs, joined[:-1], strict=True)] + joined[-1:]
        together = torch.cat([resized(each, maps[0].shape[2:]) for each in smoothed], 1)
        return self.classify(self.fpn_bottleneck(together), generator)


class FcnHead(_DecodeHead):
    """The auxiliary head, for training only: one convolution and the last layer (arXiv 1411.4038)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(AUXILIARY_CHANNELS, classes)
        self.convs = nn.ModuleList([ConvNorm(dim, AUXILIARY_CHANNELS, 3)])

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Return logits [B, K, h, w] at the resolution of the third of the maps."""
        return self.classify(self.convs[0](maps[AUXILIARY_MAP]), generator)
