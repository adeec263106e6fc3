"""Quality metrics of a tokenizer whose tokens are known."""

import pytest
import torch
from torch import Tensor

from beit.tokenizer.figures import measure


class Brightness:
    """The token of an 8 x 8 square is the mean of its first channel in steps of 64."""

    vocab_size, px_per_token, digest, precision, has_decoder = 5, 8, "", "float32", True

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images[:, 0].double(), 8).floor_divide(64).long().flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        squares = (tokens * 64).to(torch.uint8).view(len(tokens), 1, 2, 2)
        return squares.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


def test_figures_of_three_equally_frequent_tokens_and_a_constant_error():
    levels = torch.tensor([[10, 10, 74, 138], [74, 74, 10, 138], [138, 138, 74, 10]])
    images = (
        levels.to(torch.uint8)
        .view(3, 1, 2, 2)
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
        .expand(-1, 3, -1, -1)
    )
    figures = measure(Brightness(), images)
    assert figures["perplexity"] == pytest.approx(3)
    assert figures["dead"] == 2
    assert figures["commonest"] == pytest.approx(1 / 3)
    assert figures["error"] == pytest.approx(10 / 255)
    assert figures["stable"] == 1


def test_tokens_at_the_edge_of_two_are_not_stable():
    images = torch.full((4, 3, 16, 16), 64, dtype=torch.uint8)
    assert 0.2 < measure(Brightness(), images)["stable"] < 0.9
