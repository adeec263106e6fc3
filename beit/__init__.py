"""BEiT: a Vision Transformer that predicts the visual tokens of hidden patches. No Ray in here.

`load_model` reads a checkpoint folder, `load_tokenizer` a tokenizer by name or folder; everything else is in
the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit.loading import load_model
    from beit.tokenizer.registry import load_tokenizer

__all__ = ["load_model", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    # The command line imports this package before it knows whether it needs torch, which takes seconds to
    # import.
    if name == "load_model":
        from beit.loading import load_model

        return load_model
    if name == "load_tokenizer":
        from beit.tokenizer.registry import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
