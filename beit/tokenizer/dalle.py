"""The full-size tokenizer of DALL-E: its sizes, and random weights for measuring."""

from __future__ import annotations

import torch

from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Encoder, initialise
from beit.tokenizer.frozen import DvaeTokenizer

DALLE = DvaeConfig()
"""8,192 tokens; encoder of 53,786,240 parameters in 74 tensors, decoder of 43,829,766 in 76."""

IMAGE_SIZE = 256
"""Pixels of the images that DALL-E's tokenizer was trained on (arXiv 2102.12092, section 2.1)."""


def random_dalle(*, device: str | torch.device = "cpu", seed: int = 0) -> DvaeTokenizer:
    """DALL-E's encoder with random weights: tokens without meaning at the true cost, for measuring a
    pipeline.
    """
    encoder = Encoder(DALLE)
    initialise(encoder, torch.Generator().manual_seed(seed))
    return DvaeTokenizer(encoder, None, device=device)
