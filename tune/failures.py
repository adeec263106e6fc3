"""Summarise the cause of a failed trial or job in one line."""

from __future__ import annotations

from beit.errors import TwoLineError
from pipelines.command_line.world import unwrapped

KILLED = "its process was killed, perhaps because memory ran out"


def cause(error: BaseException) -> str:
    """Return the last line of an exception, or the cause if it is a `TwoLineError`. If Ray has wrapped the
    exception, the original one counts.
    """
    error = unwrapped(error)
    if isinstance(error, TwoLineError):
        return error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
