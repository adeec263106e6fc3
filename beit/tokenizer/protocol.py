"""What every tokenizer offers, whatever it is made of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


# B images of h x w pixels, N visual tokens per image: one for each square of `px_per_token` pixels, row by row
@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns images into visual tokens. Frozen: the same image gives the same tokens for the same `digest` and `precision`."""

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
        """Arithmetic of the convolutions, "float32" or "float16". A few tokens in a thousand differ between the two."""
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
