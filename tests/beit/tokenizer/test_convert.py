"""Conversion of published tokenizers, on files of the same layout with random weights: what is read, and what
is refused with which message.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from beit.errors import UserError
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.convert import convert
from beit.tokenizer.dvae import Dvae, initialise
from beit.tokenizer.frozen import DvaeTokenizer
from beit.tokenizer.registry import load_tokenizer

CONFIG = DvaeConfig(vocab_size=60, encoder_width=8, decoder_width=8, blocks=2, bottleneck=4)


@pytest.fixture
def original() -> Dvae:
    dvae = Dvae(CONFIG)
    initialise(dvae, torch.Generator().manual_seed(0))
    return dvae.requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    coarse = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, (40, 40), mode="bilinear") * 255).to(torch.uint8)


def in_flava_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        name: re.sub(r"(group_\d)\.", r"\1.group.", name).replace("res_path.", "res_path.path.")
        for name in state
    }
    return {
        re.sub(r"\.([wb])$", lambda end: {"w": ".weight", "b": ".bias"}[end[1]], names[name]): state[name]
        for name in state
    }


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_authors_files_become_a_tokenizer_that_says_where_it_is_from(
    legacy, original, images, tmp_path: Path, pickle_as_published
):
    for part in (original.encoder, original.decoder):
        pickle_as_published(part, tmp_path / f"{type(part).__name__.lower()}.pkl", legacy=legacy)
    sums = [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("encoder.pkl", "decoder.pkl")
    ]
    done = convert(
        tmp_path / "encoder.pkl",
        tmp_path / "out",
        decoder=tmp_path / "decoder.pkl",
        sha256=sums[0].upper(),
        decoder_sha256=sums[1],
        dvae=CONFIG,
    )
    loaded, expected = (
        load_tokenizer(str(tmp_path / "out")),
        DvaeTokenizer(original.encoder, original.decoder),
    )
    assert done.digest == loaded.digest == expected.digest
    tokens = loaded.encode(images)
    assert torch.equal(tokens, expected.encode(images))
    assert torch.equal(loaded.decode(tokens), expected.decode(tokens))
    described = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert (described["vocab_size"], described["px_per_token"], described["pixels"]) == (
        60,
        8,
        {"scale": 0.8, "offset": 0.1},
    )
    files = described["training"]["converted_from"]
    assert [(file["file"], file["sha256"]) for file in files] == [
        ("encoder.pkl", sums[0]),
        ("decoder.pkl", sums[1]),
    ]


def write_mmpretrain(encoder: dict[str, Tensor], path: Path) -> None:
    torch.save({"meta": {"epoch": 1}, "state_dict": encoder}, path)


def write_plain(encoder: dict[str, Tensor], path: Path) -> None:
    torch.save(encoder, path)


def write_parallel(encoder: dict[str, Tensor], path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in encoder.items()}, path)


def write_flava(encoder: dict[str, Tensor], path: Path) -> None:
    save_file(in_flava_names(encoder), path, {"format": "pt"})


def write_flava_bin(encoder: dict[str, Tensor], path: Path) -> None:
    torch.save(in_flava_names(encoder), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write", [write_mmpretrain, write_plain, write_parallel, write_flava, write_flava_bin]
)
def test_an_encoder_alone_is_a_tokenizer_without_decoder(write: Callable, original, images, tmp_path: Path):
    write(original.encoder.state_dict(), tmp_path / "file")
    done = convert(tmp_path / "file", tmp_path / "out", dvae=CONFIG)
    loaded = load_tokenizer(str(tmp_path / "out"))
    assert not done.has_decoder
    assert not loaded.has_decoder
    assert torch.equal(loaded.encode(images), DvaeTokenizer(original.encoder, None).encode(images))


def test_tokens_are_those_of_hugging_face(images, tmp_path: Path):
    flava = pytest.importorskip(
        "transformers", reason="transformers is not installed, nothing to compare with"
    ).models.flava
    torch.manual_seed(0)
    theirs = flava.FlavaImageCodebook(flava.FlavaImageCodebookConfig(hidden_size=8, vocab_size=60)).eval()
    pixels = 0.8 * images.float() / 255 + 0.1
    with torch.inference_mode():
        for weights in theirs.parameters():
            if weights.ndim == 4:
                weights.normal_(0, weights[0].numel() ** -0.5)
        theirs.blocks.output.conv.bias -= theirs(pixels).mean((0, 2, 3))  # or one token wins everywhere
    theirs.save_pretrained(tmp_path / "flava")
    convert(tmp_path / "flava" / "model.safetensors", tmp_path / "out", dvae=CONFIG)
    expected = theirs.get_codebook_indices(pixels).flatten(1)
    assert expected.unique().numel() > 5
    assert torch.equal(load_tokenizer(str(tmp_path / "out")).encode(images), expected)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is an empty file"),
        (b"\n<!DOCTYPE html>\n<title>404</title>", "is an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML page"),
        (
            b"--2024-01-01 10:00:00--  https://cdn.openai.com/dall-e/encoder.pkl\nResolving cdn.openai.com",
            "is a log of wget",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"Repository not found.\n", "is text that begins with 'Repository not found.'"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive"),
        (b"\x00\x01\x02\x03" * 9, "is 36 bytes of an unknown kind"),
        (b"cos\nsystem\n(S'true'\ntR.", r"is a pickle with the global os\.system"),
        (b"PK\x03\x04" + bytes(50), "is a damaged zip archive"),
        ((60).to_bytes(8, "little") + b'{"blocks.input.weight":{', "is a damaged safetensors file"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_with_what_it_is(content: bytes, what: str, tmp_path: Path):
    (tmp_path / "encoder.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"encoder\.pkl {what}.*nothing in it was run"):
        convert(tmp_path / "encoder.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in {**state, name: tensor}.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (
            change("blocks.output.conv.b", None),
            r"73 tensors, blocks\.output\.conv\.b absent; it should have 74, this one \[60\]",
        ),
        (
            change("blocks.extra.w", torch.ones(2)),
            r"75 tensors, blocks\.extra\.w \[2\]; it should have 74, this one absent",
        ),
        (
            change("blocks.output.conv.b", torch.ones(61)),
            r"blocks\.output\.conv\.b \[61\]; .* this one \[60\]",
        ),
        (
            change("blocks.output.conv.b", torch.full((60,), torch.nan)),
            r"blocks\.output\.conv\.b holds values that are not finite",
        ),
        (
            change("blocks.output.conv.b", torch.ones(60, dtype=torch.int64)),
            r"blocks\.output\.conv\.b holds values that are not finite",
        ),
        (
            lambda state: {"patch_embed.proj.weight": torch.ones(1)},
            r"no tokenizer that is known here: 1 tensors \(patch_embed",
        ),
        # A view of two numbers that would fill the memory if it were copied.
        (change("blocks.output.conv.b", torch.ones(2)[:1].expand(10**12)), r"b \[1000000000000\]"),
    ],
)
def test_other_tensors_than_the_published_ones_are_refused(
    changed: Callable, what: str, original, tmp_path: Path
):
    torch.save(changed(original.encoder.state_dict()), tmp_path / "encoder.pth")
    with pytest.raises(UserError, match=what):
        convert(tmp_path / "encoder.pth", tmp_path / "out", dvae=CONFIG)
    assert not (tmp_path / "out").exists()


def test_files_in_the_wrong_place_are_refused_with_the_right_command(original, tmp_path: Path):
    for part in (original.encoder, original.decoder):
        torch.save(part.state_dict(), tmp_path / f"{type(part).__name__}.pth")
    encoder, decoder, out = tmp_path / "Encoder.pth", tmp_path / "Decoder.pth", tmp_path / "out"
    with pytest.raises(UserError, match="is DALL-E's decoder") as raised:
        convert(decoder, out, decoder=encoder, dvae=CONFIG)
    assert f"encoder.pkl OUT --decoder {decoder}" in raised.value.remedy
    with pytest.raises(UserError, match="is DALL-E's encoder"):
        convert(encoder, out, decoder=encoder, dvae=CONFIG)
    with pytest.raises(UserError, match="is not there"):
        convert(tmp_path / "nothing.pth", out)
    with pytest.raises(UserError, match=r"has the SHA-256 [0-9a-f]{64}, not 00"):
        convert(encoder, out, sha256="00", dvae=CONFIG)
    convert(encoder, out, dvae=CONFIG)
    with pytest.raises(UserError, match="holds a tokenizer already"):
        convert(encoder, out, dvae=CONFIG)
