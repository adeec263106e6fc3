"""Report how a job failed or was stopped: the cause in one line, the remedy in another. Ray's full text goes
into the job's folder.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from beit.errors import JobFailedError, TerminatedError, TwoLineError, UserError
from pipelines import storage
from pipelines.redaction import redact

ERROR_FILE = "error.log"

RAISED = re.compile(r"^[\w.]*(?:Error|Exception)\w*: .+", re.MULTILINE)
DIED = re.compile(r"^The actor died unexpectedly.*\n\s*class_name: (\S+)", re.MULTILINE)
CHAINED = re.compile(
    r"\n\n(?:The above exception was the direct cause|During handling of the above exception)"
)


def cause_of(error: Exception | str) -> str:
    """Return the line of an error that states the cause: in a traceback of Ray's, the exception that was
    raised first; otherwise the first line.
    """
    text = str(error)
    if died := DIED.search(text):
        return f"Ray's actor {died[1]} died"
    lines = RAISED.findall(CHAINED.split(text)[0]) or RAISED.findall(text)
    return (
        lines[-1].strip()
        if lines
        else next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    )


def job_failed(
    error: Exception, folder: str | None, *, doing: str, cause: str, remedy: str
) -> JobFailedError:
    """Build the error that ends a job. Its full text is written into the folder, if one is given."""
    if folder is None:
        everything = "--debug shows everything"
    else:
        file = storage.join(folder, ERROR_FILE)
        everything = f"everything in {file}"
        try:
            storage.write_text(file, redact(f"{error}\n"))
        except (OSError, UserError):  # The disk may be full, which may be the cause.
            everything = "--debug shows everything"
    return JobFailedError(f"{cause} ({doing}; {everything})", f"fix the cause, then {remedy}")


@contextlib.contextmanager
def explained(doing: str, remedy: str, *, folder: str | None) -> Iterator[None]:
    """If Ray, the storage or the machine fails, end the job with a line of cause and one of remedy.

    Args:
        doing: What is being done, such as "while the model was judged".
        remedy: How to resume.
        folder: The job's folder.

    Raises:
        JobFailedError: In place of what was raised.
    """
    from ray.exceptions import RayError

    try:
        yield
    except TwoLineError:
        raise
    except (RayError, OSError, pa.ArrowException) as error:
        raise job_failed(error, folder, doing=doing, cause=cause_of(error), remedy=remedy) from error


@contextlib.contextmanager
def resumable(doing: str, remedy: str, *, folder: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """If work outside of the training fails or is interrupted, say how to resume the job.

    Args:
        doing: What is being done, such as "while the model was judged".
        remedy: How to resume.
        folder: The job's folder.
        say: Takes the lines for the user.

    Raises:
        JobFailedError: If Ray or the storage raises an exception.
    """
    logger = logging.getLogger("ray.data")
    level = logger.level
    if (
        level == logging.ERROR
    ):  # Not in a debugging session. Ray Data would print tracebacks before it raises them.
        logger.setLevel(logging.CRITICAL)
    try:
        with explained(doing, remedy, folder=folder):
            yield
    except KeyboardInterrupt as stop:
        say(f"stopped; {remedy}")
        raise (TerminatedError if isinstance(stop, TerminatedError) else KeyboardInterrupt) from None
    finally:
        logger.setLevel(level)
