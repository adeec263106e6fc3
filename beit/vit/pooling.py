"""How the tokens of an image become one vector.

Imports nothing heavy, because parsing a command line imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from beit.errors import UserError

Pooling = Literal["mean", "cls"]

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
"""mean: mean of the patch tokens, the class token left out. cls: the class token."""


def check_poolings(poolings: Sequence[Pooling]) -> None:
    """Refuse an empty list.

    Raises:
        UserError: If no pooling is named.
    """
    if not poolings:
        raise UserError("--poolings is given without a name", "write --poolings mean, cls, or both")
