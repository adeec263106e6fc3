"""`beit tokenizer convert FILE OUT`: convert a published tokenizer to a folder for `--tokenizer.path`."""

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
    """Read a published tokenizer without running any code in its file, and write it as safetensors."""

    file: str
    """File of the published tokenizer: encoder.pkl of openai/DALL-E, FLAVA's image codebook, mmpretrain's
    dalle_encoder.pth, or unilm's pytorch_model.bin."""

    out: str
    """Folder to write, on this machine."""

    decoder: str | None = None
    """decoder.pkl of openai/DALL-E. None: the tokenizer can only encode, which is enough for pretraining."""

    sha256: str | None = None
    """SHA-256 digest that `file` must have, in hexadecimal. None: any file is accepted. The digest is saved
    with the tokenizer."""

    decoder_sha256: str | None = None
    """SHA-256 digest that the file `decoder` must have. None: any file is accepted."""


def convert_tokenizer(config: ConvertConfig) -> Iterator[str]:
    """Convert a tokenizer; returns lines that describe the result.

    Raises:
        UserError: If a path is an address, or a file is not one of these.
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
