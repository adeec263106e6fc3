"""`beit tokenizer convert FILE OUT`: a published tokenizer -> a folder that `--tokenizer.path` takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beit.checks import CommandConfig
from beit.tokenizer.convert import convert
from pipelines.command_line.options import parse
from pipelines.tools.weights import COPY, DOWNLOAD, check_local


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CommandConfig):
    """Read a published tokenizer without running anything in its file, and write it as safetensors."""

    file: str
    """encoder.pkl of openai/DALL-E, FLAVA's image codebook, mmpretrain's dalle_encoder.pth, or unilm's
    pytorch_model.bin."""

    out: str
    """The folder to write, on this machine."""

    decoder: str | None = None
    """decoder.pkl of openai/DALL-E. None: the tokenizer only encodes, which is all that pretraining needs."""

    sha256: str | None = None
    """What the file must be, in hexadecimal. None: whatever it is, it is written down."""

    decoder_sha256: str | None = None
    """The same of the decoder's file."""


def convert_tokenizer(config: ConvertConfig) -> Iterator[str]:
    """Convert a tokenizer, and describe the result in lines.

    Raises:
        UserError: For addresses, and for files that are not what they should be.
    """
    check_local(config.file, DOWNLOAD)
    check_local(config.out, COPY)
    done = convert(
        Path(config.file),
        Path(config.out),
        decoder=None if config.decoder is None else Path(config.decoder),
        sha256=config.sha256,
        decoder_sha256=config.decoder_sha256,
    )
    yield (
        f"{done.kind}: {done.vocab_size:,} tokens of {done.px_per_token} px, "
        f"{'with' if done.has_decoder else 'no'} decoder"
    )
    yield f"digest {done.digest}"
    yield f"written: {done.folder} (use it as --tokenizer.path {done.folder})"


def command(arguments: list[str], debug: bool) -> None:
    """`beit tokenizer convert FILE OUT`."""
    config = parse(arguments, ConvertConfig, command="tokenizer convert FILE OUT", positional=("file", "out"))
    for line in convert_tokenizer(config):
        print(line)
