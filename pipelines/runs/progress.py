"""Format the progress line, and durations."""

from __future__ import annotations

import math
from typing import Any


def progress_line(
    row: dict[str, Any], *, total_steps: int, seconds_left: float, shown: list[tuple[str, str]]
) -> str:
    """Format the line that shows whether a run is healthy: the items `shown` as (format, metric names),
    then speed and time left.
    """
    parts = [f"step {row['step']:,}/{total_steps:,}"]
    for template, names in shown:
        values = [row.get(name) for name in names.split()]
        if all(value is not None and math.isfinite(value) for value in values):
            parts.append(template.format(*values))
    parts.append(f"{row['speed/images_per_second']:,.0f} img/s")
    parts.append(f"data wait {row['speed/data_wait']:.0%}")
    if row.get("data/quarantined"):
        parts.append(f"{row['data/quarantined']:,} bad sample{'s' * (row['data/quarantined'] > 1)}")
    return " | ".join([*parts, f"eta {duration(seconds_left)}"])


def duration(seconds: float) -> str:
    """3725 -> '1h 2m': the two largest units."""
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    whole = max(0, round(seconds))
    parts: list[str] = []
    for name, size in units:
        if whole >= size or (name == "s" and not parts):
            parts.append(f"{whole // size}{name}")
            whole %= size
        elif parts:
            break
    return " ".join(parts[:2])
