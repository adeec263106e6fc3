"""What the segmentation heads are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.vit.backbone import Conv2d

DROPOUT = 0.1
"""Share of the channels that a head in training does not see in front of its last layer (microsoft/unilm,
beit/semantic_segmentation)."""


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` without weights of its own drawing, of side and stride 2: it doubles a map's
    resolution.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=2, stride=2)

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU: [B, c_in, h, w] -> [B, c_out, h, w].

    The authors' BatchNorm gathers its statistics from all workers, as
    `beit.segmentation.heads.norms.synchronised` makes this one do.
    """

    def __init__(self, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply it."""
        return F.relu(self.bn(self.conv(maps)))


def drop_channels(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Maps [B, C, h, w] with a tenth of the channels of every image 0 and the others scaled up, so that the
    expectation stays.
    """
    kept = (
        torch.rand(*maps.shape[:2], 1, 1, generator=generator, device=generator.device).to(maps.device)
        >= DROPOUT
    )
    return maps * kept / (1 - DROPOUT)


def resized(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps [B, C, h, w] at another size, bilinear, pixels at the centres of their squares."""
    if maps.shape[2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def initialise_head(head: nn.Module, generator: torch.Generator) -> None:
    """Draw a head's weights as mmseg does for the authors.

    Convolutions before a BatchNorm: He's rule (arXiv 1502.01852) over outgoing connections. The last layer:
    deviation 0.01. Transposed convolutions: uniform within 1 / sqrt(outputs of a pixel), bias included,
    torch's default. Norms are 1 and 0 with no history.
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
