"""Load tokenizers by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from beit.errors import UserError
from beit.tokenizer import frozen, unilm
from beit.tokenizer.config import PX_PER_TOKEN
from beit.tokenizer.dalle import random_dalle
from beit.tokenizer.folder import DESCRIPTION, read_description
from beit.tokenizer.protocol import ImageTokenizer

RANDOM = "random-dalle"

PUBLISHED = "dalle"

SHIPPED = Path(__file__).parent / "trained"
"""One folder for each tokenizer that comes with the package."""


def tokenizer_names() -> list[str]:
    """Return the names that `load_tokenizer` knows."""
    return [*sorted(folder.parent.name for folder in SHIPPED.glob("*/tokenizer.json")), RANDOM]


def load_tokenizer(name_or_path: str, *, device: str | torch.device = "cpu") -> ImageTokenizer:
    """Load a tokenizer for encoding: a built-in one by name, or a folder that training or converting wrote.

    Args:
        name_or_path: One of `tokenizer_names()`, or a folder.
        device: Where it computes: in float32 on a CPU; DALL-E's kind in float16 on a GPU.

    Raises:
        UserError: If it is neither; the message lists the names.
    """
    if name_or_path == RANDOM:
        return random_dalle(device=device)
    if name_or_path == PUBLISHED:
        raise UserError(
            "tokenizer.name=dalle: DALL-E's published weights do not come with the package",
            "write beit tokenizer convert encoder.pkl FOLDER --decoder decoder.pkl, then give "
            "--tokenizer.path FOLDER; or measure with --tokenizer.name random-dalle",
        )
    folder = _find(name_or_path)
    kind = read_description(folder).get("kind")
    if kind == unilm.KIND:
        return unilm.UnilmTokenizer(unilm.load_unilm(folder), device=device)
    if kind == frozen.KIND:
        parts = frozen.load_dvae(folder)
        return frozen.DvaeTokenizer(parts.encoder, parts.decoder, device=device)
    raise UserError(
        f"{folder} holds a tokenizer of the kind {kind!r}, which this version does not know",
        "make it again with this version, or update",
    )


def px_per_token(name_or_path: str) -> int:
    """Return the side of the square of pixels that one token stands for, without loading the weights.

    Raises:
        UserError: If there is no such tokenizer.
    """
    if name_or_path in (RANDOM, PUBLISHED):
        return PX_PER_TOKEN
    return described_px(read_description(_find(name_or_path)), name_or_path)


def described_px(description: Any, place: str) -> int:
    """Return `px_per_token` from the contents of a `tokenizer.json`.

    Raises:
        UserError: If it is missing.
    """
    px = description.get("px_per_token") if isinstance(description, dict) else None
    if not isinstance(px, int) or px < 1:
        raise UserError(
            f"{place}: its {DESCRIPTION} does not say px_per_token",
            "make the tokenizer again with this version",
        )
    return px


def _find(name_or_path: str) -> Path:
    """Return the folder of a tokenizer, given by name or path."""
    if name_or_path in tokenizer_names():
        return SHIPPED / name_or_path
    if not Path(name_or_path).is_dir():
        raise UserError(
            f"tokenizer {name_or_path!r} is neither a built-in name nor a folder",
            f"set tokenizer.name to one of {', '.join(tokenizer_names())}, or tokenizer.path to a folder "
            "that `beit tokenizer train` or `convert` wrote",
        )
    return Path(name_or_path)
