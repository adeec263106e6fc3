"""One checked thing, how bad it is, and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is; also the word before its line."""

    FINE = "ok"
    WARNING = "warn"
    PROBLEM = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One checked thing."""

    level: Level
    what: str
    remedy: str = ""

    def lines(self) -> list[str]:
        """Write the finding as text; the remedy on a line of its own."""
        return [f"{self.level.value:<6}{self.what}", *([f"      -> {self.remedy}"] if self.remedy else [])]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
