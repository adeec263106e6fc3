"""Exceptions that the command line shows as two lines, without a traceback."""

from __future__ import annotations


class TwoLineError(Exception):
    """An error with a cause and a remedy, one line each. Only its subclasses below are raised.

    It is no `ValueError`, because parsers of options catch those and print them in their own way.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[TwoLineError], tuple[str, str]]:
        # By default, unpickling would call the class with the one string that went to `Exception`, and fail.
        return (type(self), (self.cause, self.remedy))


class UserError(TwoLineError):
    """The user asked for something impossible.

    Raised on the driver, before any resource is reserved. The command exits with 2.
    """


class TerminatedError(KeyboardInterrupt):
    """SIGTERM ended a job, which has cleaned up; a training has written a last checkpoint.

    The command exits with 143, the shell's code for SIGTERM.
    """


class JobFailedError(TwoLineError):
    """A job failed although its configuration was valid. The command exits with 1."""
