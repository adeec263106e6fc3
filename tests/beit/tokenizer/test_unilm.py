"""The released code's own tokenizer, against a plain re-computation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from beit.errors import UserError
from beit.tokenizer import frozen
from beit.tokenizer.convert import convert
from beit.tokenizer.protocol import ImageTokenizer
from beit.tokenizer.registry import load_tokenizer
from beit.tokenizer.unilm import UnilmConfig, UnilmDvae, UnilmTokenizer

CONFIG = UnilmConfig(vocab_size=40, codebook_dim=6, width=8)


def some_state() -> dict[str, Tensor]:
    """Names and shapes written out, as `DiscreteVAE` of the released code has them."""
    shapes: dict[str, tuple[int, ...]] = {
        "codebook.weight": (40, 6),
        "encoder.6.weight": (40, 8, 1, 1),
        "decoder.6.weight": (3, 8, 1, 1),
    }
    shapes |= {"encoder.6.bias": (40,), "decoder.6.bias": (3,)}
    for coder, first in (("encoder", (8, 3, 4, 4)), ("decoder", (6, 8, 4, 4))):
        for at in (0, 2, 4):
            shapes |= {
                f"{coder}.{at}.0.weight": first if at == 0 else (8, 8, 4, 4),
                f"{coder}.{at}.0.bias": (8,),
            }
            for conv, kernel in ((0, 3), (2, 3), (4, 1)):
                shapes |= {
                    f"{coder}.{at + 1}.net.{conv}.weight": (8, 8, kernel, kernel),
                    f"{coder}.{at + 1}.net.{conv}.bias": (8,),
                }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def residual(x: Tensor, state: dict[str, Tensor], at: str) -> Tensor:
    y = F.conv2d(x, state[f"{at}.net.0.weight"], state[f"{at}.net.0.bias"], padding=1).relu()
    y = F.conv2d(y, state[f"{at}.net.2.weight"], state[f"{at}.net.2.bias"], padding=1).relu()
    return x + F.conv2d(y, state[f"{at}.net.4.weight"], state[f"{at}.net.4.bias"])


def tokens_of(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = (images.float() / 255 - 0.5) / 0.5
    for at in (0, 2, 4):
        x = F.conv2d(
            x, state[f"encoder.{at}.0.weight"], state[f"encoder.{at}.0.bias"], stride=2, padding=1
        ).relu()
        x = residual(x, state, f"encoder.{at + 1}")
    return F.conv2d(x, state["encoder.6.weight"], state["encoder.6.bias"]).argmax(1).flatten(1)


def images_of(tokens: Tensor, state: dict[str, Tensor]) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    x = (
        torch.stack([state["codebook.weight"][row] for row in tokens])
        .reshape(-1, side, side, 6)
        .permute(0, 3, 1, 2)
    )
    for at in (0, 2, 4):
        x = F.conv_transpose2d(
            x, state[f"decoder.{at}.0.weight"], state[f"decoder.{at}.0.bias"], stride=2, padding=1
        ).relu()
        x = residual(x, state, f"decoder.{at + 1}")
    x = F.conv2d(x, state["decoder.6.weight"], state["decoder.6.bias"])
    return (x * 0.5 + 0.5).clamp(0, 1) * 255


def converted(tmp_path: Path) -> ImageTokenizer:
    torch.save({"hparams": {"num_layers": 3}, "weights": some_state()}, tmp_path / "pytorch_model.bin")
    done = convert(tmp_path / "pytorch_model.bin", tmp_path / "out", unilm=CONFIG)
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert (done.vocab_size, done.px_per_token, done.has_decoder, done.digest) == (
        40,
        8,
        True,
        tokenizer.digest,
    )
    return tokenizer


def test_tokens_and_images_are_those_of_a_plain_recomputation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = converted(tmp_path)
    assert isinstance(tokenizer, ImageTokenizer)
    images = torch.randint(256, (5, 3, 24, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    tokens = tokens_of(images, some_state())
    assert tokens.unique().numel() > 5
    assert torch.equal(tokenizer.encode(images), tokens)
    assert (tokenizer.decode(tokens) - images_of(tokens, some_state())).abs().max() <= 0.51
    monkeypatch.setitem(frozen.CHUNK_BYTES, "cpu", 1)
    assert torch.equal(tokenizer.encode(images), tokens), "whatever goes through together"


def test_the_released_size_has_53_tensors():
    with torch.device("meta"):
        state = UnilmDvae(UnilmConfig()).state_dict()
    assert len(state) == len(some_state()) == 53
    assert state["codebook.weight"].shape == (8192, 512)
    assert state["decoder.0.0.weight"].shape == (512, 256, 4, 4)


def test_another_size_and_a_second_decoder_are_refused(tmp_path: Path):
    torch.save({"weights": some_state()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"unilm's DiscreteVAE with 53 tensors, codebook\.weight \[40, 6\]; .* \[8192, 512\]"
    ):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "out")
    with pytest.raises(UserError, match="has its own decoder"):
        convert(
            tmp_path / "pytorch_model.bin",
            tmp_path / "out",
            decoder=tmp_path / "pytorch_model.bin",
            unilm=CONFIG,
        )


def test_images_of_another_form_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        UnilmTokenizer(UnilmDvae(CONFIG)).encode(torch.zeros(1, 3, 30, 32, dtype=torch.uint8))
