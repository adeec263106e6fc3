"""Tokenizers by name."""

import numpy as np
import pytest
import torch

from beit.errors import UserError
from beit.tokenizer.protocol import ImageTokenizer
from beit.tokenizer.registry import SHIPPED, load_tokenizer, tokenizer_names
from pipelines.scenes.render import render_scene


def test_unknown_names_are_refused_with_the_names_that_exist():
    with pytest.raises(UserError, match="scnes64") as caught:
        load_tokenizer("scnes64")
    assert all(name in caught.value.remedy for name in tokenizer_names())


def test_random_dalle_is_the_full_size_encoder_and_the_same_every_time():
    first, second = load_tokenizer("random-dalle"), load_tokenizer("random-dalle")
    assert isinstance(first, ImageTokenizer)
    assert (first.vocab_size, first.px_per_token, first.has_decoder) == (8192, 8, False)
    assert first.digest == second.digest
    images = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tokens = first.encode(images)
    assert tokens.shape == (1, 16)
    assert torch.equal(second.encode(images), tokens)


def test_the_shipped_tokenizer_is_small_uses_its_tokens_and_paints_scenes_back():
    tokenizer = load_tokenizer("scenes64")
    assert (SHIPPED / "scenes64" / "tokenizer.safetensors").stat().st_size < 3e6
    scenes = np.stack([render_scene(np.random.default_rng([3, i])).image for i in range(96)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2)
    tokens = tokenizer.encode(images)
    counts = tokens.flatten().bincount(minlength=tokenizer.vocab_size).double()
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    assert perplexity > tokenizer.vocab_size / 4
    painted = tokenizer.decode(tokens).float()
    error, of_one_colour = (
        (images - other).abs().mean() / 255 for other in (painted, images.float().mean((2, 3), keepdim=True))
    )
    assert error < 0.1
    assert error < 0.8 * of_one_colour, (
        f"{error:.3f} against {of_one_colour:.3f} with each image in its mean colour"
    )
