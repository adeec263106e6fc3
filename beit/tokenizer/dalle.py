"""The full-size tokenizer of DALL-E: its published weights, or random ones for measuring."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.errors import UserError
from beit.tokenizer.dvae import Dvae, DvaeConfig, Encoder, initialise
from beit.tokenizer.frozen import DvaeTokenizer

DALLE = DvaeConfig()
"""8,192 tokens; encoder of 53,786,240 parameters in 74 tensors, decoder of 43,829,766 in 76."""

_PICKLED_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)


def random_dalle(*, device: str | torch.device = "cpu", seed: int = 0) -> DvaeTokenizer:
    """DALL-E's encoder with random weights: tokens without meaning at the true cost, for measuring a pipeline."""
    encoder = Encoder(DALLE)
    initialise(encoder, torch.Generator().manual_seed(seed))
    return DvaeTokenizer(encoder, None, device=device)


class _Inert:
    """Takes the place of a pickled class: keeps what was pickled, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of `encoder.pkl` or `decoder.pkl` by name, without running code from the file.

    The published files are whole pickled modules; reading them the usual way executes them and needs their package.
    Here every class in them is replaced by one that only holds its contents. A plain state dict is read as well.

    Raises:
        UserError: When the file holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", "give the encoder.pkl and the decoder.pkl that DALL-E's authors published")
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in _PICKLED_CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} holds something other than the tensors of DALL-E's modules ({reason})",
            "download it again from openai/DALL-E; a file of a few kB is an error page or a log",
        ) from error
    found = content if isinstance(content, Mapping) else dict(_tensors(content, ""))
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in getattr(module, "_parameters", {}).items():
        if value is not None:
            yield prefix + name, value
    for name, child in getattr(module, "_modules", {}).items():
        yield from _tensors(child, f"{prefix}{name}.")


def convert_published(encoder: Path, decoder: Path, config: DvaeConfig = DALLE) -> Dvae:
    """The published tokenizer as a `Dvae`, which `save_tokenizer` writes to a folder.

    Args:
        encoder: The authors' `encoder.pkl`.
        decoder: The authors' `decoder.pkl`.
        config: Sizes that the tensors must have.

    Raises:
        UserError: When a file is not what it should be: tensors missing, left over or of another shape.
    """
    with torch.device("meta"):
        dvae = Dvae(config)
    for part, path in ((dvae.encoder, encoder), (dvae.decoder, decoder)):
        state = read_published(path)
        try:
            part.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{path} does not hold the {len(part.state_dict())} tensors of the {type(part).__name__.lower()} ({len(state)} found)",
                "give the encoder's file and the decoder's file in this order",
            ) from error
    return dvae
