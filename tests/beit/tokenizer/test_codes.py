import numpy as np
import torch

from beit.tokenizer.codes import count_tokens, describe_codes
from beit.tokenizer.pictures import code_sheet


class Brightness:
    """Squares of 8 px -> their brightness in 16 steps, painted back as grey."""

    px_per_token, vocab_size, has_decoder = 8, 16, True

    def encode(self, images):
        means = images.float().unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5))
        return (means / 16).long().flatten(1)

    def decode(self, tokens):
        side = int(tokens.shape[1] ** 0.5)
        grey = (16 * tokens + 8).to(torch.uint8).reshape(-1, 1, side, side)
        return grey.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


def some_images():
    """Four images of four squares, each of one brightness: steps 0 0 0 1, 0 0 0 1, 0 0 5 9, 1 1 5 5."""
    steps = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 5, 9], [1, 1, 5, 5]])
    return Brightness().decode(steps).contiguous(), steps


def test_codes_are_shown_from_the_commonest_to_the_rarest_with_squares_of_as_many_images_as_there_are():
    tokenizer = Brightness()
    images, steps = some_images()
    tokens = tokenizer.encode(images)
    np.testing.assert_array_equal(tokens, steps)
    assert count_tokens(tokens, 16).tolist() == [8, 4, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    codes = describe_codes(tokenizer, images, tokens, examples=3)
    assert [code.token for code in codes] == [0, 1, 5, 9]
    assert [code.share for code in codes] == [8 / 16, 4 / 16, 3 / 16, 1 / 16]
    assert [len(code.examples) for code in codes] == [3, 3, 3, 1]
    for code in codes:
        assert (code.decoded == 16 * code.token + 8).all()
        assert (code.examples == 16 * code.token + 8).all()
    assert [code.token for code in describe_codes(tokenizer, images, tokens, codes=2)] == [0, 9]

    # Which images examples come from: mark each image in one colour channel.
    marked = images.clone()
    marked[:, 0] += torch.arange(4, dtype=torch.uint8)[:, None, None]
    first = describe_codes(tokenizer, marked, tokens, examples=3)[0]
    assert {int(square[0, 0, 0]) - 8 for square in first.examples} == {0, 1, 2}


def test_the_sheet_holds_what_the_decoder_paints_and_the_examples():
    tokenizer = Brightness()
    images, tokens = some_images()
    sheet = np.asarray(
        code_sheet(describe_codes(tokenizer, images, tokens, examples=4), examples=4, columns=2, zoom=2)
    )
    for number, code in enumerate((0, 1, 5)):
        x, y = 6 + number % 2 * (32 + 3 + 32 + 12), 6 + number // 2 * (32 + 17 + 6)
        assert (sheet[y : y + 32, x : x + 32] == 16 * code + 8).all()
        squares = 3 if code == 5 else 4
        shown = [sheet[y + place % 2 * 16 :, x + 35 + place // 2 * 16 :][:16, :16] for place in range(4)]
        assert [bool((square == 16 * code + 8).all()) for square in shown] == [
            place < squares for place in range(4)
        ]
