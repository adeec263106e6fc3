"""Exceptions that the command line shows in two lines."""

from __future__ import annotations


class TwoLineError(Exception):
    """One line of cause, one line of remedy: the command line prints both without a traceback. Raised as one
    of its kinds below.

    No `ValueError`: parsers of options catch those, and would tell it their own way.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[TwoLineError], tuple[str, str]]:
        # An exception with two arguments that shows one does not survive pickling between processes
        # otherwise.
        return (type(self), (self.cause, self.remedy))


class UserError(TwoLineError):
    """Something was asked for that cannot be. Raised on the driver before any resource is asked for; the
    command exits with 2.
    """


class TerminatedError(KeyboardInterrupt):
    """A job was ended by SIGTERM and has cleaned up, a training with a last checkpoint. The command exits
    with 143, as shells count.
    """


class JobFailedError(TwoLineError):
    """A job that was well asked for and failed all the same; the command exits with 1."""
