"""Statistics and examples of a tokenizer's visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.tokenizer.protocol import ImageTokenizer

FIELD = 5
"""Side, in tokens, of the field of equal tokens that a single token is decoded in."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """One visual token."""

    token: int

    share: float
    """Share of all tokens of the images."""

    decoded: NDArray[np.uint8] | None
    """The decoder's output in the middle of a field of this token, [px, px, 3]. None: there is no decoder."""

    examples: NDArray[np.uint8]
    """Squares of images with this token, [n, px, px, 3]."""


# B images of h x w pixels in R x C squares of px x px pixels, N = R * C
def count_tokens(tokens: Tensor, vocab_size: int) -> NDArray[np.int64]:
    """Count how often each token occurs: int64 [...] -> int64 [V]."""
    counts: NDArray[np.int64] = tokens.flatten().bincount(minlength=vocab_size).cpu().numpy()
    return counts


def describe_codes(
    tokenizer: ImageTokenizer, images: Tensor, tokens: Tensor, *, codes: int = 48, examples: int = 6
) -> list[Code]:
    """Return examples of some tokens, from the most frequent to the rarest, evenly spaced by rank.

    Args:
        tokenizer: The tokenizer that made the tokens.
        images: uint8 [B, 3, h, w].
        tokens: int64 [B, N], those of the images.
        codes: Number of tokens at most.
        examples: Number of squares per token at most, from as many different images as possible.
    """
    px = tokenizer.px_per_token
    counts = count_tokens(tokens, tokenizer.vocab_size)
    ranked = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    shown = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(codes, len(ranked))).round().astype(int))]
    painted = None
    if tokenizer.has_decoder:
        middle = slice(FIELD // 2 * px, (FIELD // 2 + 1) * px)
        fields = tokenizer.decode(torch.from_numpy(shown)[:, None].expand(-1, FIELD**2))
        painted = fields[:, :, middle, middle].permute(0, 2, 3, 1).cpu().numpy()
    count, _, height, width = images.shape
    squares = (
        images.reshape(count, 3, height // px, px, width // px, px)
        .permute(0, 2, 4, 3, 5, 1)
        .flatten(1, 2)
        .cpu()
        .numpy()
    )
    of_square = tokens.cpu().numpy()
    described = []
    for number, token in enumerate(shown.tolist()):
        image, square = np.nonzero(of_square == token)
        # First one square per image, because neighbours in one image are often alike.
        order = np.argsort(
            [np.count_nonzero(image[:i] == one) for i, one in enumerate(image)], kind="stable"
        )[:examples]
        described.append(
            Code(
                token=token,
                share=float(counts[token] / counts.sum()),
                decoded=None if painted is None else painted[number],
                examples=squares[image[order], square[order]],
            )
        )
    return described
