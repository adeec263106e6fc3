"""The discrete VAE against a plain re-computation from its tensor names."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from beit.errors import UserError
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Decoder, Dvae, Encoder, initialise, map_pixels, set_precision, unmap_pixels


def small(**changes: int) -> Dvae:
    config = {
        "vocab_size": 40,
        "encoder_width": 8,
        "decoder_width": 12,
        "blocks": 2,
        "bottleneck": 6,
    } | changes
    dvae = Dvae(DvaeConfig(**config)).double()
    initialise(dvae, torch.Generator().manual_seed(0))
    for name, parameter in dvae.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return dvae


def run_by_names(state: dict[str, Tensor], x: Tensor, *, blocks: int, decoder: bool) -> Tensor:
    """The published structure with nothing but F.conv2d and the tensors' names."""

    def conv(name: str, value: Tensor) -> Tensor:
        weight = state[f"{name}.w"]
        return F.conv2d(value, weight, state[f"{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv("blocks.input", x)
    for group in range(1, 5):
        for block in range(1, blocks + 1):
            at = f"blocks.group_{group}.block_{block}"
            y = x
            for i in range(1, 5):
                y = conv(f"{at}.res_path.conv_{i}", y.clamp(min=0))
            x = (conv(f"{at}.id_path", x) if f"{at}.id_path.w" in state else x) + y / (4 * blocks) ** 2
        if group < 4:
            x = (
                x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                if decoder
                else x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
            )
    return conv("blocks.output.conv", x.clamp(min=0))


def test_full_size_has_the_published_number_of_tensors_and_parameters():
    with torch.device("meta"):
        dvae = Dvae(DvaeConfig())
    sizes = [[p.numel() for p in part.parameters()] for part in (dvae.encoder, dvae.decoder)]
    assert [(len(s), sum(s)) for s in sizes] == [(74, 53_786_240), (76, 43_829_766)]


def test_only_blocks_that_change_the_channels_have_a_convolution_on_the_identity_path():
    dvae = small()
    found = [
        {name[7:-10] for name in part.state_dict() if name.endswith("id_path.w")}
        for part in (dvae.encoder, dvae.decoder)
    ]
    assert found[0] == {f"group_{g}.block_1" for g in (2, 3, 4)}
    assert found[1] == {f"group_{g}.block_1" for g in (1, 2, 3, 4)}


@pytest.mark.parametrize("blocks", [1, 2])
def test_encoder_and_decoder_equal_the_plain_computation(blocks: int):
    dvae, generator = small(blocks=blocks), torch.Generator().manual_seed(1)
    mapped = torch.rand(2, 3, 16, 24, generator=generator, dtype=torch.float64)
    expected = run_by_names(dvae.encoder.state_dict(), mapped, blocks=blocks, decoder=False)
    assert expected.shape == (2, 40, 2, 3)
    torch.testing.assert_close(dvae.encoder(mapped), expected)
    codes = torch.rand(2, 40, 2, 3, generator=generator, dtype=torch.float64).softmax(1)
    expected = run_by_names(dvae.decoder.state_dict(), codes, blocks=blocks, decoder=True)
    assert expected.shape == (2, 6, 16, 24)
    torch.testing.assert_close(dvae.decoder(codes), expected)


def test_tokens_decode_as_their_one_hot_codes_do():
    dvae = small()
    tokens = torch.randint(40, (3, 2, 4), generator=torch.Generator().manual_seed(2))
    one_hot = F.one_hot(tokens, 40).permute(0, 3, 1, 2).double()
    torch.testing.assert_close(dvae.decoder.from_tokens(tokens), dvae.decoder(one_hot))


def test_first_weights_have_the_variance_of_one_over_the_inputs():
    encoder = Encoder(DvaeConfig(vocab_size=64, encoder_width=64, blocks=1))
    initialise(encoder, torch.Generator().manual_seed(0))
    for name, weight in encoder.state_dict().items():
        if name.endswith(".w") and weight.numel() > 4000:
            expected = 1 / math.sqrt(weight.shape[1] * weight.shape[2] ** 2)
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        elif name.endswith(".b"):
            assert not weight.any(), name


def test_first_weights_depend_on_the_generator_alone():
    draws = []
    for seed in (3, 3, 4):
        decoder = Decoder(DvaeConfig(vocab_size=8, decoder_width=4, blocks=1, bottleneck=2))
        initialise(decoder, torch.Generator().manual_seed(seed))
        draws.append(decoder.blocks.input.w.detach())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_mapped_pixels_keep_a_tenth_from_both_ends_and_come_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    mapped = map_pixels(pixels)
    torch.testing.assert_close(mapped[[0, 255]], torch.tensor([0.1, 0.9]))
    assert torch.equal((unmap_pixels(mapped) * 255).round().to(torch.uint8), pixels)
    torch.testing.assert_close(unmap_pixels(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_half_precision_leaves_the_layers_at_the_tokens_alone():
    dvae = Dvae(DvaeConfig(vocab_size=8, encoder_width=4, decoder_width=4, blocks=1, bottleneck=2))
    for part, kept in ((dvae.encoder, "blocks.output.conv"), (dvae.decoder, "blocks.input")):
        set_precision(part, "float16")
        single = {name for name, weight in part.state_dict().items() if weight.dtype == torch.float32}
        assert single == {f"{kept}.w", f"{kept}.b"}


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 0), ("encoder_width", 30), ("decoder_width", 2), ("blocks", 0)]
)
def test_sizes_that_cannot_be_built_are_refused_by_name(field: str, value: int):
    with pytest.raises(UserError, match=f"dvae.{field}={value} "):
        Dvae(DvaeConfig(**{field: value}))
