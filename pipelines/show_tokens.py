"""`beit tokenizer show IMAGE…`: images, their visual tokens, and what the decoder makes of them, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from beit.checks import positive
from beit.config import TokenizerConfig, ViewConfig
from beit.errors import UserError
from pipelines import storage


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Which images to show, and with which tokenizer."""

    images: tuple[str, ...] = ()
    """Image files, local or on a bucket. Of each, the largest centred square is shown."""

    out: str = "tokens.png"
    """Where to write the picture."""

    side: int = 224
    """Side of a picture on the sheet, in pixels."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        positive(self, "--", "side")


def show(config: ShowConfig) -> Iterator[str]:
    """Write the sheet, and say in lines what is on it.

    Raises:
        UserError: Without images, for one that cannot be decoded, or for a size that is no whole number of tokens.
    """
    import numpy as np
    import torch

    from beit.pictures import token_sheet
    from beit.views import Status, make_view
    from pipelines.stream import open_tokenizer

    if not config.images:
        raise UserError("beit tokenizer show: IMAGE is missing", "write beit tokenizer show IMAGE…")
    tokenizer, size = open_tokenizer(config.tokenizer), config.tokenizer.image_size
    if size % (px := tokenizer.px_per_token):
        raise UserError(
            f"tokenizer.image_size={size} is not a multiple of the {px} px that a token stands for",
            f"set --tokenizer.image-size {max(1, round(size / px)) * px}",
        )
    centre = ViewConfig(min_area=1, aspect=1, flip=0, jitter=0)
    squares = []
    for image in config.images:
        if storage.entry(image) is None:
            raise UserError(f"{image} is not there, or is no file", "write beit tokenizer show IMAGE… with image files")
        view = make_view(storage.read_bytes(image), np.random.default_rng(0), view=centre, patch_px=size, token_px=size)
        if view.status != Status.DECODED:
            raise UserError(f"{image}: {view.status.reason}", "leave it out")
        squares.append(view.patch_view)
    tokens = tokenizer.encode(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    decoded = list(tokenizer.decode(tokens).permute(0, 2, 3, 1).numpy()) if tokenizer.has_decoder else None
    grids = tokens.reshape(-1, size // px, size // px).numpy()
    file = io.BytesIO()
    token_sheet(squares, list(grids), decoded, [storage.name(image) for image in config.images], side=config.side).save(file, "PNG")
    storage.write_bytes(config.out, file.getvalue())
    different = len(np.unique(grids))
    yield f"{len(squares)} image(s) of {size} px: {grids[0].size} tokens each, {different:,} different of {tokenizer.vocab_size:,}"
    yield f"written: {config.out}"
