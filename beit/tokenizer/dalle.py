"""The full-size tokenizer of DALL-E: its sizes, and a version with random weights for benchmarks."""

from __future__ import annotations

import torch

from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Encoder, initialise
from beit.tokenizer.frozen import DvaeTokenizer

DALLE = DvaeConfig()
"""8,192 tokens; the encoder has 53,786,240 parameters in 74 tensors, the decoder 43,829,766 in 76."""

IMAGE_SIZE = 256
"""Side of the images that DALL-E's tokenizer was trained on, in pixels (arXiv 2102.12092, section 2.1)."""


def random_dalle(*, device: str | torch.device = "cpu", seed: int = 0) -> DvaeTokenizer:
    """Return DALL-E's encoder with random weights, for benchmarks.

    Its tokens mean nothing, but they cost as much as real ones.
    """
    encoder = Encoder(DALLE)
    initialise(encoder, torch.Generator().manual_seed(seed))
    return DvaeTokenizer(encoder, None, device=device)
