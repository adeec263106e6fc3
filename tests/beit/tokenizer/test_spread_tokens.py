"""All tokens are in use before the first step."""

import torch
from torch import Tensor

from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Encoder, initialise, map_pixels
from beit.tokenizer.spread_tokens import leaf_images, spread_tokens


def some_encoder() -> Encoder:
    encoder = Encoder(DvaeConfig(vocab_size=128, encoder_width=16, blocks=1))
    initialise(encoder, torch.Generator().manual_seed(0))
    return encoder


def perplexity(encoder: Encoder, images: Tensor) -> float:
    with torch.no_grad():
        counts = encoder(map_pixels(images)).argmax(1).flatten().bincount(minlength=128).double()
    return torch.special.entr(counts / counts.sum()).sum().exp().item()


def test_neighbouring_pixels_are_alike_and_distant_ones_are_not():
    images = leaf_images(32, 64, torch.Generator().manual_seed(0))
    assert 0 <= images.min() < 0.05 < 0.95 < images.max() <= 1
    near, far = ((images[..., shift:] - images[..., :-shift]).abs().mean() for shift in (1, 32))
    assert near < 0.2 * far, f"{near:.3f} beside {far:.3f}"


def test_spread_logits_have_the_asked_deviation_on_images_never_seen():
    encoder = some_encoder()
    spread_tokens(encoder, 5.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = encoder(map_pixels(leaf_images(64, 64, torch.Generator().manual_seed(2))))
    deviation, mean = torch.std_mean(logits, dim=(0, 2, 3))
    assert (deviation - 5).abs().max() < 1
    assert mean.abs().max() < 1.5


def test_spreading_brings_tokens_into_use():
    images = leaf_images(64, 64, torch.Generator().manual_seed(2))
    drawn, spread = some_encoder(), some_encoder()
    spread_tokens(spread, 6.0, torch.Generator().manual_seed(1))
    assert perplexity(drawn, images) < 10
    assert perplexity(spread, images) > 40


def test_spread_weights_depend_on_the_generator_alone():
    first, second = some_encoder(), some_encoder()
    for encoder in (first, second):
        spread_tokens(encoder, 6.0, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
