"""How good a tokenizer is on given images."""

from __future__ import annotations

import torch
from torch import Tensor

from beit.tokenizer.protocol import ImageTokenizer

NOISE_LEVELS = 2
"""The stability figure adds to every value of a pixel a whole number between minus and plus this, of 255."""


def measure(tokenizer: ImageTokenizer, images: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Figures of a tokenizer's most probable tokens, the ones that pretraining sees.

    Args:
        tokenizer: With a decoder or without.
        images: uint8 [B, 3, h, w].
        seed: Of the noise for "stable".

    Returns:
        "perplexity" of the tokens' frequencies over all images; "dead", tokens that occur nowhere;
        "commonest", the share of the most frequent token; "stable", the share of tokens that noise of at most
        2 levels of 255 leaves as they were; and, with a decoder, "error", the mean absolute error of the
        decoded pixels in [0, 1].
    """
    tokens = tokenizer.encode(images)
    counts = tokens.flatten().bincount(minlength=tokenizer.vocab_size).double().cpu()
    share = counts / counts.sum()
    noise = torch.randint(
        -NOISE_LEVELS,
        NOISE_LEVELS + 1,
        images.shape,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.int16,
    )
    noisy = (images.short() + noise.to(images.device)).clamp(0, 255).to(torch.uint8)
    figures = {
        "perplexity": torch.special.entr(share).sum().exp().item(),
        "dead": float((counts == 0).sum()),
        "commonest": share.max().item(),
        "stable": (tokenizer.encode(noisy) == tokens).double().mean().item(),
    }
    if tokenizer.has_decoder:
        figures["error"] = (
            tokenizer.decode(tokens).short() - images.to(tokens.device).short()
        ).abs().double().mean().item() / 255
    return figures
