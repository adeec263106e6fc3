"""Find a preset by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from beit.errors import UserError

Preset = TypeVar("Preset")


def find_preset(presets: Mapping[str, Callable[[], Preset]], name: str, cause: str) -> Preset:
    """Return the configuration of a preset of any job.

    Args:
        presets: All presets of the job.
        name: Name of the preset.
        cause: Message for a name that is no preset.

    Raises:
        UserError: If there is no preset of this name; the message suggests the nearest one.
    """
    if name not in presets:
        if Path(name, "config.json").is_file():
            raise UserError(
                cause, f"--resume {name} resumes that run, {name}/config.json is its configuration"
            )
        if Path(name).exists() or "://" in name:
            raise UserError(cause, f"images are given by --data.train {name}")
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"perhaps you meant {close[0]}; " if close else ""
        raise UserError(cause, f"{hint}presets: {', '.join(presets)}, or the config.json of a run")
    return presets[name]()
