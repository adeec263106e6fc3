"""Frozen tokenizers: what they compute, and what a folder keeps of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.errors import UserError
from beit.plain import to_dict
from beit.tokenizer import frozen
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Dvae, initialise
from beit.tokenizer.frozen import DvaeTokenizer, load_dvae, save_tokenizer, weights_digest
from beit.tokenizer.protocol import ImageTokenizer
from beit.tokenizer.registry import load_tokenizer

CONFIG = DvaeConfig(vocab_size=50, encoder_width=8, decoder_width=8, blocks=1, bottleneck=6)


def some_dvae() -> Dvae:
    dvae = Dvae(CONFIG)
    initialise(dvae, torch.Generator().manual_seed(0))
    return dvae


def some_images(count: int = 5, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


def saved(folder: Path, *, half: bool = False) -> Dvae:
    dvae = some_dvae()
    save_tokenizer(folder, dvae, image_size=32, training={"steps": 0}, figures={"error": 0.5}, half=half)
    return dvae


def test_tokens_are_the_largest_logits_in_row_major_order():
    dvae, images = some_dvae(), some_images()
    logits = dvae.encoder(0.8 * images.float() / 255 + 0.1)
    expected = torch.stack([logits[:, :, y, x].argmax(1) for y in range(4) for x in range(4)], dim=1)
    tokens = DvaeTokenizer(dvae.encoder, dvae.decoder).encode(images)
    assert tokens.dtype == torch.int64
    assert expected.unique().numel() > 2
    assert torch.equal(tokens, expected)


def test_decoded_pixels_are_the_unmapped_sigmoid_of_the_location():
    dvae = some_dvae()
    tokens = torch.randint(50, (3, 4), generator=torch.Generator().manual_seed(2))
    one_hot = torch.nn.functional.one_hot(tokens.view(3, 2, 2), 50).permute(0, 3, 1, 2).float()
    expected = ((dvae.decoder(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1) * 255
    images = DvaeTokenizer(dvae.encoder, dvae.decoder).decode(tokens)
    assert images.dtype == torch.uint8
    assert (images - expected).abs().max() <= 0.51


def test_tokens_do_not_depend_on_how_many_images_go_through_together(monkeypatch: pytest.MonkeyPatch):
    dvae, images = some_dvae(), some_images(7)
    tokenizer = DvaeTokenizer(dvae.encoder, dvae.decoder)
    together = tokenizer.encode(images)
    monkeypatch.setitem(frozen.CHUNK_BYTES, "cpu", 4 * 8 * 32 * 32 * 2)
    assert torch.equal(tokenizer.encode(images), together)
    assert torch.equal(tokenizer.decode(together)[3:4], tokenizer.decode(together[3:4]))


def test_images_given_as_a_view_of_hwc_arrays_have_the_same_tokens():
    dvae, images = some_dvae(), some_images()
    tokenizer = DvaeTokenizer(dvae.encoder, None)
    hwc = images.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(tokenizer.encode(hwc.permute(0, 3, 1, 2)), tokenizer.encode(images))


def test_a_saved_tokenizer_gives_the_same_tokens_and_digest(tmp_path: Path):
    dvae = saved(tmp_path / "mine")
    loaded, original = load_tokenizer(str(tmp_path / "mine")), DvaeTokenizer(dvae.encoder, dvae.decoder)
    assert isinstance(loaded, ImageTokenizer)
    assert (loaded.vocab_size, loaded.px_per_token, loaded.has_decoder, loaded.precision) == (
        50,
        8,
        True,
        "float32",
    )
    assert loaded.digest == original.digest
    tokens = original.encode(some_images())
    assert torch.equal(loaded.encode(some_images()), tokens)
    assert torch.equal(loaded.decode(tokens), original.decode(tokens))


def test_weights_kept_in_half_are_read_to_float_and_digested_as_read(tmp_path: Path):
    whole = saved(tmp_path / "whole")
    saved(tmp_path / "half", half=True)
    read = load_dvae(tmp_path / "half")
    for name, weight in read.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, whole.state_dict()[name].half().float())
    digests = [
        json.loads((tmp_path / kept / "tokenizer.json").read_text())["digest"] for kept in ("whole", "half")
    ]
    assert (
        digests[0]
        != digests[1]
        == weights_digest(read.state_dict())
        == load_tokenizer(str(tmp_path / "half")).digest
    )
    sizes = [(tmp_path / kept / "tokenizer.safetensors").stat().st_size for kept in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_digest_sees_names_shapes_and_values_but_not_the_memory_layout():
    base = {"a": torch.arange(6.0).view(1, 2, 3, 1), "b": torch.ones(2)}
    same = {"b": base["b"], "a": base["a"].contiguous(memory_format=torch.channels_last)}
    assert weights_digest(same) == weights_digest(base)
    for other in (
        {"c": base["a"], "b": base["b"]},
        {**base, "a": base["a"].view(1, 3, 2, 1)},
        {**base, "b": torch.tensor([1.0, 1.0001])},
    ):
        assert weights_digest(other) != weights_digest(base)


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path):
    saved(tmp_path)
    state = load_file(tmp_path / "tokenizer.safetensors")
    state["encoder.blocks.input.b"][0] += 1
    save_file(state, tmp_path / "tokenizer.safetensors")
    with pytest.raises(UserError, match="digest"):
        load_dvae(tmp_path)


def cut(folder: Path) -> None:
    weights = (folder / "tokenizer.safetensors").read_bytes()
    (folder / "tokenizer.safetensors").write_bytes(weights[: len(weights) // 2])


def describe(folder: Path, **changes: object) -> None:
    description = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(description | changes))


def rename(folder: Path) -> None:
    state = load_file(folder / "tokenizer.safetensors")
    state["encoder.blocks.first.b"] = state.pop("encoder.blocks.input.b")
    save_file(state, folder / "tokenizer.safetensors")
    describe(folder, digest=weights_digest(state))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut, "tokenizer.safetensors cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json has no digest"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer.json has no digest"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"digest": '), "tokenizer.json is not JSON"),
        (lambda folder: describe(folder, config="small"), "tokenizer.json has no config"),
        (lambda folder: describe(folder, config={"width": 8}), "width is not a field of DvaeConfig"),
        (
            lambda folder: describe(folder, config={**to_dict(CONFIG), "blocks": 0}),
            "config.blocks=0 is not positive",
        ),
        (
            lambda folder: describe(folder, config={**to_dict(CONFIG), "vocab_size": 40}),
            r"is \[6, 50, 1, 1\] in .*, \[6, 40, 1, 1\] by",
        ),
        (rename, "encoder.blocks.first.b is .* absent by the config"),
    ],
)
def test_a_damaged_tokenizer_is_named_with_what_is_wrong(
    damage: Callable[[Path], object], what: str, tmp_path: Path
):
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=what) as raised:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in raised.value.cause
    assert "train or convert it again" in raised.value.remedy


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 30, 32, dtype=torch.uint8),
    ],
)
def test_images_of_another_form_are_refused(images: torch.Tensor):
    with pytest.raises(ValueError, match=r"uint8|multiples of 8"):
        DvaeTokenizer(some_dvae().encoder, None).encode(images)


def test_decoding_needs_a_decoder_and_a_square_grid():
    dvae = some_dvae()
    with pytest.raises(ValueError, match="no decoder"):
        DvaeTokenizer(dvae.encoder, None).decode(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="square"):
        DvaeTokenizer(some_dvae().encoder, dvae.decoder).decode(torch.zeros(1, 6, dtype=torch.int64))
