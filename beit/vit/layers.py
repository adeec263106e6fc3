"""Layers of the Vision Transformer: linear ones that are not initialised twice, patches of pixels, the MLP.

Letters in shapes: B images, N patches of an image, T tokens of an image, S of them, D width of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NORM_EPS = 1e-6
CHANNELS = 3


class Linear(nn.Linear):
    """`nn.Linear` that skips PyTorch's default initialisation; `initialise` or a checkpoint sets it."""

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialised.

        The default would take as long as the real initialisation, and would use torch's global generator.
        """


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that skips PyTorch's default initialisation; `initialise` or a checkpoint sets it."""

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialised."""


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(CHANNELS, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Float [B, 3, height, width] -> patches [B, N, D], row by row."""
        # A convolution whose stride is its kernel is one matrix product over the pixels of each patch.
        return F.linear(cut(pixels, self.proj.kernel_size[0]), self.proj.weight.flatten(1), self.proj.bias)


def cut(pixels: Tensor, size: int) -> Tensor:
    """Cut images [B, 3, height, width] into patches of `size` x `size` pixels, [B, N, 3 size size].

    Patches are in row order, the values of a patch channel by channel.
    """
    images, channels, height, width = pixels.shape
    squares = pixels.reshape(images, channels, height // size, size, width // size, size)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(images, -1, channels * size * size)


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Float [B, S, D] -> [B, S, D]."""
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


def take_tokens(tokens: Tensor, rows: Tensor) -> Tensor:
    """Return the tokens [B, S, D] at the positions `rows` [B, S] of tokens [B, T, D]."""
    images, length, dim = tokens.shape
    first = torch.arange(0, images * length, length, device=rows.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, (rows + first).flatten()).reshape(images, -1, dim)
