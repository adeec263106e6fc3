"""Exceptions that the command line shows in two lines."""


class UserError(Exception):
    """One line of cause, one line of remedy.

    Raised on the driver before any resource is asked for. The command line prints both lines without a
    traceback and exits with 2. No `ValueError`: parsers of options catch those, and would tell it their own way.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        # An exception with two arguments that shows one does not survive pickling between processes otherwise.
        return (UserError, (self.cause, self.remedy))


class JobFailedError(Exception):
    """A job that was well asked for and failed all the same. The command line prints it like a `UserError` and exits with 1."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy
