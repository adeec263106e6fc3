"""Tokenizers by name."""

from __future__ import annotations

from pathlib import Path

import torch

from beit.errors import UserError
from beit.tokenizer.protocol import ImageTokenizer

RANDOM = "random-dalle"

PUBLISHED = "dalle"

SHIPPED = Path(__file__).parent / "trained"
"""One folder for each tokenizer that comes with the package."""


def tokenizer_names() -> list[str]:
    """Names that `load_tokenizer` knows."""
    return [*sorted(folder.parent.name for folder in SHIPPED.glob("*/tokenizer.json")), RANDOM]


def load_tokenizer(name_or_path: str, *, device: str | torch.device = "cpu") -> ImageTokenizer:
    """Load a tokenizer for encoding: a built-in one by name, or a folder that training or converting wrote.

    Args:
        name_or_path: One of `tokenizer_names()`, or a folder.
        device: Where it computes. float32 on a CPU, float16 on a GPU.

    Raises:
        UserError: When it is neither; the names that exist are listed.
    """
    from beit.tokenizer import frozen, unilm
    from beit.tokenizer.dalle import random_dalle
    from beit.tokenizer.folder import read_description

    if name_or_path == RANDOM:
        return random_dalle(device=device)
    named = name_or_path in tokenizer_names()
    folder = SHIPPED / name_or_path if named else Path(name_or_path)
    if name_or_path == PUBLISHED:
        raise UserError(
            "tokenizer.name=dalle: DALL-E's published weights do not come with the package",
            "write beit tokenizer convert encoder.pkl FOLDER --decoder decoder.pkl, then give --tokenizer.path FOLDER; "
            "or measure with --tokenizer.name random-dalle",
        )
    if not named and not folder.is_dir():
        raise UserError(
            f"tokenizer {name_or_path!r} is neither a built-in name nor a folder",
            f"set tokenizer.name to one of {', '.join(tokenizer_names())}, or tokenizer.path to a folder that `beit tokenizer train` "
            "or `convert` wrote",
        )
    kind = read_description(folder).get("kind")
    if kind == unilm.KIND:
        return unilm.UnilmTokenizer(unilm.load_unilm(folder), device=device)
    if kind == frozen.KIND:
        parts = frozen.load_dvae(folder)
        return frozen.DvaeTokenizer(parts.encoder, parts.decoder, device=device)
    raise UserError(
        f"{folder} holds a tokenizer of the kind {kind!r}, which this version does not know", "make it again with this version, or update"
    )
