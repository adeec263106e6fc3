"""`beit tokenizer show IMAGE… | --data PATH`: draw images, their visual tokens and reconstructions, and print
the tokenizer's quality.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from beit.checks import CommandConfig, PositiveInt
from beit.config import TokenizerConfig, ViewConfig
from beit.errors import UserError
from beit.tokenizer.figures import measure
from beit.tokenizer.pictures import token_sheet
from pipelines import storage
from pipelines.command_line.options import parse
from pipelines.schemes import StoragePath
from pipelines.sources import open_source
from pipelines.stream.graph import open_tokenizer
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.tools.image_files import check_picture, read_square

CENTRE_SQUARE = ViewConfig(min_area=1, aspect=1, flip=0, jitter=0)


@dataclass(frozen=True, kw_only=True)
class ShowConfig(CommandConfig):
    """Draw images, their visual tokens and reconstructions, and print the tokenizer's quality."""

    images: tuple[str, ...] = ()
    """Image files, local or on a bucket. The largest centred square of each is shown."""

    data: str | None = None
    """Shards, folder or tars to draw random images from, given like `data.train`. None: the given image files
    are shown."""

    measured: PositiveInt = 512
    """Number of images of `data` to measure the tokenizer on."""

    shown: PositiveInt = 12
    """Number of images of `data` to show."""

    out: StoragePath = "tokens.png"
    """Path of the picture to write."""

    side: PositiveInt = 224
    """Side of each image on the sheet, in pixels."""

    # The default tokenizer was trained on images of 64 px.
    tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(image_size=64))


def show(config: ShowConfig) -> Iterator[str]:
    """Write the sheet; returns lines that describe it.

    Raises:
        UserError: If no image is given, an image cannot be decoded, or the size is no whole number of tokens.
    """
    if bool(config.images) == (config.data is not None):
        what = "both IMAGE and --data are given" if config.images else "IMAGE is missing"
        raise UserError(
            f"beit tokenizer show: {what}",
            "write beit tokenizer show IMAGE… or beit tokenizer show --data PATH",
        )
    check_picture(config.out)
    tokenizer, size = open_tokenizer(config.tokenizer), config.tokenizer.image_size
    if size % (px := tokenizer.px_per_token):
        raise UserError(
            f"tokenizer.image_size={size} is not a multiple of the {px} px that a token stands for",
            f"set --tokenizer.image-size {max(1, round(size / px)) * px}",
        )
    if config.data is None:
        squares, names = (
            np.stack([read_square(image, size) for image in config.images]),
            [storage.name(image) for image in config.images],
        )
    else:
        squares = _random_squares(config.data, size, config.measured)
        figures = measure(tokenizer, torch.from_numpy(squares).permute(0, 3, 1, 2))
        error = f"mean absolute error {figures['error']:.3f}, " if "error" in figures else ""
        yield (
            f"on {len(squares)} images: {error}perplexity {figures['perplexity']:,.0f} of "
            f"{tokenizer.vocab_size:,}, {figures['dead']:,.0f} "
            f"tokens unused, {figures['stable']:.0%} stay when pixels change by at most 2 of 255"
        )
        squares = squares[: config.shown]
        names = [""] * len(squares)
    tokens = tokenizer.encode(torch.from_numpy(squares).permute(0, 3, 1, 2))
    decoded = list(tokenizer.decode(tokens).permute(0, 2, 3, 1).numpy()) if tokenizer.has_decoder else None
    grids = tokens.reshape(-1, size // px, size // px).numpy()
    file = io.BytesIO()
    token_sheet(list(squares), list(grids), decoded, names, side=config.side).save(file, "PNG")
    storage.write_bytes(config.out, file.getvalue())
    different = len(np.unique(grids))
    yield (
        f"{len(squares)} image(s) of {size} px: {grids[0].size} tokens each, {different:,} different of "
        f"{tokenizer.vocab_size:,}"
    )
    yield f"written: {config.out}"


def _random_squares(data: str, size: int, count: int) -> NDArray[np.uint8]:
    """Read the centre squares of random images of a data path, [n, size, size, 3]; images that cannot be
    decoded are left out.
    """
    source = open_source(data, option="data")
    squares: NDArray[np.uint8] = draw_unseen(
        source.manifest, SampleConfig(seed=0, view=CENTRE_SQUARE, patch_px=size), count
    )["patch_view"]
    if not len(squares):
        raise UserError(f"data={data}: no image could be decoded", "beit data check PATH tells why")
    return squares


def command(arguments: list[str], debug: bool) -> None:
    """`beit tokenizer show IMAGE… | --data PATH`."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--images", *arguments]
    for line in show(
        parse(arguments, ShowConfig, command="tokenizer show IMAGE… | --data PATH", positional=())
    ):
        print(line)
