"""Scale the initial output layer of the encoder, so that all tokens are used from the first step on."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from beit.tokenizer.dvae import Conv2d, Encoder, map_pixels

LEAVES = 24
"""Number of shapes in an artificial image."""

IMAGES = 128
SIDE = 64


def leaf_images(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Generate images of overlapping discs and rectangles in shaded random colours, most of them small.
    Such "dead leaves" images resemble photographs in one respect: neighbouring pixels are alike except across
    edges, at every scale.

    Returns:
        float [count, 3, side, side] in [0, 1].
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    centres = torch.arange(side) / side
    images = draw(3, 1, 1).expand(-1, -1, side, side)
    for _ in range(LEAVES):
        dx, dy, angle = centres - draw(1, 1), centres[:, None] - draw(1, 1), math.pi * draw(1, 1)
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        # From a twenty-fifth to half of the side. Because of the reciprocal, small shapes are frequent and
        # large ones rare.
        radius = 0.04 / (0.08 + 0.92 * draw(1, 1))
        disc, box = along**2 + across**2 < radius**2, (along.abs() < radius) & (across.abs() < 0.6 * radius)
        covered = torch.where(draw(1, 1) < 0.5, disc, box)
        shade = 1 + (0.4 * (draw(1, 1) - 0.5) * along + 0.4 * (draw(1, 1) - 0.5) * across) / radius
        images = torch.where(covered[:, None], (draw(3, 1, 1) * shade[:, None]).clamp(0, 1), images)
    return images


@torch.no_grad()
def spread_tokens(encoder: Encoder, std: float, generator: torch.Generator) -> None:
    """Scale and shift the output layer: on artificial images every logit gets mean 0 and deviation `std`.

    As initialised, the logits of a deep stack of convolutions hardly depend on the image: one token is the
    most probable everywhere, and the others differ from it by less than the noise of the relaxation.
    Artificial images are used instead of data, so every worker computes the same weights.
    """
    output = cast(Conv2d, encoder.blocks.get_submodule("output.conv"))
    logits = torch.cat([encoder(map_pixels(leaf_images(16, SIDE, generator))) for _ in range(IMAGES // 16)])
    deviation, mean = torch.std_mean(logits, dim=(0, 2, 3))
    output.w.mul_((std / deviation)[:, None, None, None])
    output.b.sub_(mean).mul_(std / deviation)
