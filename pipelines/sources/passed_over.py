"""What a listing passes over: each entry has a reason, and the reasons are counted and said in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

PassedOver = Mapping[str, int]
"""Reason in the singular, such as ".txt" or "link that leads nowhere" -> number of entries."""

NO_ENDING = "without an ending"
HIDDEN = "name that begins with . or _"

_SHOWN = 8


def ending_of(name: str) -> str:
    """Return what the last name of a path ends in, in lower case and without the dot; "" without a dot."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return ending.lower() if dot and stem else ""


def hidden_part(name: str, images: Iterable[str] = ()) -> str | None:
    """Return the part of a path, from its start, that hides it: up to the first name that begins with a dot
    or an underscore. None: nothing hides it.

    Spark and Delta call their side files and folders so. Cameras call photographs so as well (_DSC0001.JPG):
    a file that begins with an underscore is not hidden if its ending is one of `images`.
    """
    if name[:1] not in ("_", ".") and "/_" not in name and "/." not in name:  # Almost every name.
        return None
    parts = name.split("/")
    for place, part in enumerate(parts):
        photograph = place == len(parts) - 1 and part.startswith("_") and ending_of(part) in images
        if part.startswith(("_", ".")) and part not in (".", "..") and not photograph:
            return "/".join(parts[: place + 1])
    return None


def by_ending(endings: Mapping[str, int]) -> Counter[str]:
    """Turn counts by ending into counts by reason."""
    return Counter({f".{ending}" if ending else NO_ENDING: count for ending, count in endings.items()})


def added(*counts: PassedOver) -> PassedOver:
    """Add counts up, the most frequent reason first."""
    total: Counter[str] = Counter()
    for mapping in counts:
        total.update(mapping)
    return dict(total.most_common())


def describe(counts: PassedOver) -> str | None:
    """Say how many entries were passed over, and why; None if there were none."""
    total = sum(counts.values())
    if not total:
        return None
    ordered = Counter(counts).most_common()
    reasons = [f"{count:,} x {reason}" for reason, count in ordered[:_SHOWN]]
    if left := sum(count for _, count in ordered[_SHOWN:]):
        reasons.append(f"{left:,} for {len(ordered) - _SHOWN:,} other reasons")
    return f"passed over: {total:,} {'entry' if total == 1 else 'entries'}: {', '.join(reasons)}"
