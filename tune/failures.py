"""What a trial of a sweep or a job of an ablation died of, in a line."""

from __future__ import annotations

from beit.errors import TwoLineError

KILLED = "its process was killed and could say nothing, perhaps for want of memory"


def cause(error: BaseException) -> str:
    """The last line of an exception, or what a two-line one says first; where Ray has wrapped one from
    another process, of that one.
    """
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    if isinstance(error, TwoLineError):
        return error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
