"""Tokenizers by name."""

import pytest
import torch

from beit.errors import UserError
from beit.tokenizer.protocol import ImageTokenizer
from beit.tokenizer.registry import load_tokenizer, tokenizer_names


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
