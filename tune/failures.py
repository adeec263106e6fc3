"""The cause of a failed trial or job, in a line."""

from __future__ import annotations

from beit.errors import TwoLineError

KILLED = "its process was killed and could say nothing, perhaps for want of memory"


def cause(error: BaseException) -> str:
    """Return the last line of an exception, or the cause of a two-line one; of an exception that Ray has
    wrapped, the original.
    """
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    if isinstance(error, TwoLineError):
        return error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
