"""`ImageTokenizer`: the interface of every tokenizer."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


# B images of h x w pixels; N visual tokens per image, one for each square of `px_per_token` pixels, in row
# order
@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns images into visual tokens.

    A tokenizer is frozen: one `digest` and `precision` always give the same tokens for an image.
    """

    @property
    def vocab_size(self) -> int:
        """Number of different visual tokens."""
        ...

    @property
    def px_per_token(self) -> int:
        """Side of the square of pixels that one token stands for."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hexadecimal: two tokenizers with one digest are one tokenizer."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic of the convolutions, "float32" or "float16". A few tokens in a thousand differ between
        the two.
        """
        ...

    @property
    def has_decoder(self) -> bool:
        """Whether `decode` works."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Find the visual tokens of images.

        Args:
            images: uint8 [B, 3, h, w], h and w multiples of `px_per_token`.

        Returns:
            int64 [B, N], ordered by row and column of the grid.
        """
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Paint the images that visual tokens stand for.

        Args:
            tokens: int64 [B, N], the tokens of a square grid, ordered by row and column.

        Returns:
            uint8 [B, 3, h, w].
        """
        ...


def check_images(images: Tensor, px_per_token: int) -> None:
    """Refuse what is not uint8 [B, 3, h, w] with h and w multiples of `px_per_token`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"encode reads uint8 [B, 3, h, w], not {images.dtype} {list(images.shape)}")
    height, width = images.shape[2:]
    if height % px_per_token or width % px_per_token:
        raise ValueError(
            f"{height} x {width} pixels are not multiples of {px_per_token}, the pixels of a token"
        )


def side_of_grid(tokens: Tensor) -> int:
    """Side of the square grid of tokens [B, N]; anything else is refused."""
    side = math.isqrt(tokens.shape[1]) if tokens.ndim == 2 else 0
    if not side or side**2 != tokens.shape[1]:
        raise ValueError(
            f"decode reads the tokens of square grids [B, grid * grid], not {list(tokens.shape)}"
        )
    return side
