"""The result of one check: how serious it is, and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How serious a finding is; also the word in front of its line."""

    FINE = "ok"
    WARNING = "warn"
    PROBLEM = "FAIL"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    what: str
    remedy: str = ""

    def lines(self) -> list[str]:
        """Format the finding as text, with the remedy on its own line."""
        return [f"{self.level.value:<6}{self.what}", *([f"      -> {self.remedy}"] if self.remedy else [])]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
