"""Convert published tokenizers to folders that `load_tokenizer` reads.

Files are recognised by their contents. Supported are the two files of openai/DALL-E (whole pickled modules),
state dicts with the same names (mmpretrain's `dalle_encoder.pth`), the image codebook of FLAVA with Hugging
Face's names (the same encoder), and unilm's own tokenizer (microsoft/unilm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.errors import UserError
from beit.plain import to_dict
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dalle import DALLE, IMAGE_SIZE
from beit.tokenizer.folder import DESCRIPTION, WEIGHTS, read_description, shape_difference, write_folder
from beit.tokenizer.frozen import DvaeParts, save_tokenizer
from beit.tokenizer.unilm import HALF_RANGE, KIND, UnilmConfig, UnilmDvae
from beit.tokenizer.unilm import IMAGE_SIZE as UNILM_IMAGE_SIZE
from beit.untrusted.files import read_bytes, read_tensors
from beit.untrusted.pickled import NotWeightsError

LARGEST_BYTES = 4 * 2**30

ENCODER, DECODER, CODEBOOK, UNILM = (
    "DALL-E's encoder",
    "DALL-E's decoder",
    "FLAVA's image codebook",
    "unilm's DiscreteVAE",
)

SOURCES = (
    "OpenAI's encoder.pkl and decoder.pkl, FLAVA's image codebook, mmpretrain's dalle_encoder.pth or "
    "unilm's pytorch_model.bin"
)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A file's weights, with our names."""

    path: Path
    sha256: str
    kind: str
    """ENCODER, DECODER, CODEBOOK or UNILM."""
    tensors: Tensors


@dataclass(frozen=True)
class Converted:
    """A tokenizer that `convert` wrote."""

    folder: Path
    kind: str
    vocab_size: int
    px_per_token: int
    has_decoder: bool
    digest: str


def convert(
    source: Path,
    out: Path,
    *,
    decoder: Path | None = None,
    sha256: str | None = None,
    decoder_sha256: str | None = None,
    dvae: DvaeConfig = DALLE,
    unilm: UnilmConfig | None = None,
) -> Converted:
    """Write a published tokenizer to a folder as `tokenizer.safetensors` and `tokenizer.json`.

    No code in the files is run.

    Args:
        source: The encoder, or the whole tokenizer.
        out: The folder to write.
        decoder: DALL-E's decoder, to go with an encoder. Without it the tokenizer can only encode.
        sha256: The SHA-256 that `source` must have, in hexadecimal.
        decoder_sha256: The SHA-256 that `decoder` must have.
        dvae: Sizes that DALL-E's encoder and decoder must have.
        unilm: Sizes that unilm's tokenizer must have. None: those of the released code.

    Raises:
        UserError: If a file is not what it should be (the message says what it is), or if the folder already
            holds a tokenizer.
    """
    if any((out / name).exists() for name in (WEIGHTS, DESCRIPTION)):
        raise UserError(f"{out} holds a tokenizer already", "give another folder, or delete that one first")
    whole = _read(source, sha256)
    if whole.kind == DECODER:
        raise UserError(
            f"{source} is DALL-E's decoder",
            f"write beit tokenizer convert encoder.pkl OUT --decoder {source}",
        )
    if whole.kind == UNILM:
        if decoder is not None:
            raise UserError(f"--decoder {decoder}: {source} has its own decoder", "leave out --decoder")
        _write_unilm(whole, out, unilm or UnilmConfig())
    else:
        painter = None if decoder is None else _read(decoder, decoder_sha256)
        if painter is not None and painter.kind != DECODER:
            raise UserError(
                f"--decoder {decoder} is {painter.kind}",
                "give the decoder.pkl that DALL-E's authors published, or none",
            )
        _write_dvae(whole, painter, out, dvae)
    written = read_description(out)
    return Converted(
        folder=out,
        kind=whole.kind if decoder is None else f"{whole.kind} and decoder",
        vocab_size=written["vocab_size"],
        px_per_token=written["px_per_token"],
        has_decoder=written["has_decoder"],
        digest=written["digest"],
    )


def _write_dvae(encoder: Published, decoder: Published | None, out: Path, config: DvaeConfig) -> None:
    with torch.device("meta"):
        parts = DvaeParts(config, decoder=decoder is not None)
    _fill(parts.encoder, encoder)
    if decoder is not None and parts.decoder is not None:
        _fill(parts.decoder, decoder)
    save_tokenizer(out, parts, image_size=IMAGE_SIZE, training=_provenance(encoder, decoder), figures={})


def _write_unilm(whole: Published, out: Path, config: UnilmConfig) -> None:
    with torch.device("meta"):
        model = UnilmDvae(config)
    _fill(model, whole)
    description = {
        "kind": KIND,
        "config": to_dict(config),
        "vocab_size": config.vocab_size,
        "px_per_token": config.px_per_token,
        "has_decoder": True,
        "image_size": UNILM_IMAGE_SIZE,
        "pixels": {"scale": 1 / HALF_RANGE, "offset": -1.0},
        "training": _provenance(whole),
        "figures": {},
    }
    write_folder(out, model.state_dict(), description)


def _provenance(*files: Published | None) -> dict[str, Any]:
    return {
        "converted_from": [
            {"kind": file.kind, "file": file.path.name, "sha256": file.sha256}
            for file in files
            if file is not None
        ]
    }


def _fill(model: nn.Module, published: Published) -> None:
    """Check names, shapes and values of a file's weights, then give them as float32 to a model on "meta"."""
    expected = model.state_dict()
    if difference := shape_difference(published.tensors, expected):
        name, found, right = difference
        raise UserError(
            f"{published.path} is {published.kind} with {len(published.tensors)} tensors, {name} {found}; "
            f"it should have {len(expected)}, this one {right}",
            (
                "give the file as its authors published it; of other sizes, only what `beit tokenizer train` "
                "wrote can be used"
            ),
        )
    for name, tensor in published.tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(
                f"{published.path}: {name} holds values that are not finite floating-point numbers",
                "download the file again",
            )
    model.load_state_dict(
        {name: tensor.float().contiguous() for name, tensor in published.tensors.items()}, assign=True
    )


def _read(path: Path, sha256: str | None) -> Published:
    if not path.is_file():
        raise UserError(f"{path} is not there, or is no file", f"give {SOURCES}")
    data, digest = read_bytes(path, sha256, largest=LARGEST_BYTES, what="tokenizer", sources=SOURCES)
    try:
        kind, tensors = recognise(read_tensors(data))
    except NotWeightsError as error:
        raise UserError(
            f"{path} is {error}; nothing in it was run", f"download it again: {SOURCES} can be converted"
        ) from None
    return Published(path, digest, kind, tensors)


def recognise(tensors: Mapping[str, Tensor]) -> tuple[str, Tensors]:
    """Return which kind of tokenizer has these names, and the tensors with our names.

    Raises:
        NotWeightsError: If no known tokenizer has them.
    """
    # A model that was wrapped for training on several GPUs has this prefix.
    # A model that was wrapped for training on several GPUs.
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if "codebook.weight" in tensors and "encoder.0.0.weight" in tensors:
        return UNILM, dict(tensors)
    if "blocks.input.weight" in tensors:
        return CODEBOOK, {_from_flava(name): tensor for name, tensor in tensors.items()}
    if (first := tensors.get("blocks.input.w")) is not None:
        return (ENCODER if first.shape[1:] == (3, 7, 7) else DECODER), dict(tensors)
    some = ", ".join(list(tensors)[:3]) or "none"
    raise NotWeightsError(
        f"no tokenizer that is known here: {len(tensors)} tensors ({some}{', …' * (len(tensors) > 3)})"
    )


def _from_flava(name: str) -> str:
    """Translate a name of FLAVA's.

    `blocks.group_1.group.block_1.res_path.path.conv_1.weight` -> `blocks.group_1.block_1.res_path.conv_1.w`.
    """
    for theirs, ours in ((".group.", "."), (".path.", "."), (".weight", ".w"), (".bias", ".b")):
        name = name.replace(theirs, ours)
    return name
