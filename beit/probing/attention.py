"""Self-attention of single patches, as in the paper's figure 2 (arXiv 2106.08254, section 3.4).

B images, P points, H heads, N patches, T = N + 1 tokens, the class token first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.config import ViewConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.vit.attention import take_biases
from beit.vit.backbone import Backbone, backbone_of
from beit.vit.layers import take_tokens
from beit.vit.resolution import at_size

FIGURE_GRID = 30
"""Patches along a side in the paper's figure: 480 px, of 16 px each."""
PAPER_GRID = 14
"""Patches along a side of the paper's model, 224 px."""
MOST_GRID = 64
"""Most patches along a side that are accepted: memory grows with the square of their number."""

KEPT_MASS = 0.6
"""Share of the attention that the masked view keeps."""


@dataclass(frozen=True, kw_only=True)
class PointAttention:
    """The attention of chosen patches of one image."""

    image: NDArray[np.uint8]
    """[size, size, 3]."""

    points: Sequence[tuple[float, float]]
    """P points, as shares of the width from the left and of the height from the top."""

    patches: Sequence[tuple[int, int]]
    """Row and column of the patch under each point."""

    weights: NDArray[np.float32]
    """Softmax weights of every head on the patches, [P, H, grid, grid]. The rest, up to 1, is on the class
    token."""

    kept: NDArray[np.bool_]
    """The smallest set of patches that holds `KEPT_MASS` of the mean over heads, bool [P, grid, grid]."""


def attention(backbone: Backbone, pixels: Tensor, *, block: int = -1, rows: Tensor | None = None) -> Tensor:
    """Return the softmax attention of one block, recomputed from the block's input.

    Args:
        backbone: In evaluation mode.
        pixels: Float [B, 3, height, width], normalised, of the size that the backbone's positions are for.
        block: Number of the block from 0, or from the end if negative.
        rows: int64 [B, S], the query tokens (number of a patch + 1). None: all.

    Returns:
        Float [B, H, S, T]; a row sums to 1.
    """
    number = block % backbone.config.depth
    tokens = (
        backbone.embed(pixels)
        if number == 0
        else backbone.features(pixels, blocks=(number - 1,), norm=False)[0]
    )
    asked = backbone.layers[number]
    shared = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias.relative_position_bias_table
    table = asked.attn.relative_position_bias_table if shared is None else shared
    bias = None if table is None else backbone.biases(table)
    normed = asked.norm1(tokens)
    if rows is None:
        return asked.attn.weights(normed, bias)
    return asked.attn.weights(
        normed, None if bias is None else take_biases(bias, rows), take_tokens(normed, rows)
    )


def figure_size(backbone: Backbone) -> int:
    """Return the side of a figure's image in pixels.

    The paper's figure has 30 patches a side for a model of 14; a model's grid is scaled by the same factor,
    to 30 at most, and never below the model's own. So positions are resampled no further than in the paper.
    """
    grid = backbone.config.grid
    return backbone.config.patch_size * max(grid, min(FIGURE_GRID, round(grid * FIGURE_GRID / PAPER_GRID)))


def check_size(size: int, patch_size: int) -> None:
    """Refuse a size of the figure's image that is not a multiple of the patch size, or too large.

    Raises:
        UserError: It names the nearest size that is accepted.
    """
    if size % patch_size:
        near = max(1, round(size / patch_size)) * patch_size
        raise UserError(
            f"--size {size} is not a multiple of the model's patches of {patch_size} px", f"set --size {near}"
        )
    if size > MOST_GRID * patch_size:
        raise UserError(
            (
                f"--size {size} is {size // patch_size} x {size // patch_size} patches, each of which "
                "attends to all"
            ),
            f"set --size {MOST_GRID * patch_size} or less",
        )


def patch_under(point: tuple[float, float], grid: int) -> tuple[int, int]:
    """Return row and column of the patch that contains a point: x from the left, y from the top, in 0..1."""
    x, y = (min(int(share * grid), grid - 1) for share in point)
    return y, x


def smallest_set(mass: Tensor, share: float) -> Tensor:
    """Mark the fewest entries of each row that together hold a share of its sum.

    Args:
        mass: Float [..., N], not negative. Among equal entries, the first are taken.
        share: In (0, 1].

    Returns:
        Bool [..., N].
    """
    ordered, order = mass.double().sort(dim=-1, descending=True, stable=True)
    held = ordered.cumsum(-1)
    # An entry is needed if the larger ones hold less than the share.
    needed = torch.nn.functional.pad(held[..., :-1], (1, 0)) < share * held[..., -1:]
    return torch.zeros_like(needed).scatter(-1, order, needed)


@torch.inference_mode()
def look(
    model: nn.Module, image: NDArray[np.uint8], points: Sequence[tuple[float, float]], view: ViewConfig
) -> PointAttention:
    """Return the last block's attention of the patches under some points of an image; no patch is hidden.

    Args:
        model: In evaluation mode. Its positions are resampled to the image's size.
        image: uint8 [size, size, 3]; the size is a multiple of the patch size.
        points: x from the left and y from the top, in 0..1.
        view: Its mean and std normalise the pixels.
    """
    size = image.shape[0]
    backbone = at_size(backbone_of(model), size, size)
    grid, _ = backbone.grid
    patches = [patch_under(point, grid) for point in points]
    rows = torch.tensor([[1 + row * grid + column for row, column in patches]])
    weights = attention(backbone, normalise(torch.tensor(image)[None], view), rows=rows)[
        0, :, :, 1:
    ].transpose(0, 1)
    kept = smallest_set(weights.mean(1), KEPT_MASS)
    return PointAttention(
        image=image,
        points=points,
        patches=patches,
        weights=weights.reshape(len(points), -1, grid, grid).numpy(),
        kept=kept.reshape(-1, grid, grid).numpy(),
    )
