"""Quality metrics of a tokenizer on given images."""

from __future__ import annotations

import torch
from torch import Tensor

from beit.tokenizer.protocol import ImageTokenizer

NOISE_LEVELS = 2
"""For "stable", each pixel value changes by a random integer between minus and plus this, of 255."""


def measure(tokenizer: ImageTokenizer, images: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Measure a tokenizer by its most probable tokens, which are those that pretraining uses.

    Args:
        tokenizer: With or without a decoder.
        images: uint8 [B, 3, h, w].
        seed: Seed of the noise for "stable".

    Returns:
        "perplexity" of the token frequencies over all images; "dead", the number of tokens that never occur;
        "commonest", the share of the most frequent token; "stable", the share of tokens that do not change
        under noise of at most 2 levels of 255; and, with a decoder, "error", the mean absolute error of the
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
