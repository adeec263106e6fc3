"""What a job says that fails, or is stopped: a line of cause and one of remedy. All of Ray's text goes into
the job's folder.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from beit.errors import JobFailedError, TerminatedError
from pipelines import storage

ERROR_FILE = "error.log"

RAISED = re.compile(r"^[\w.]*(?:Error|Exception)\w*: .+", re.MULTILINE)
CHAINED = re.compile(
    r"\n\n(?:The above exception was the direct cause|During handling of the above exception)"
)


def cause_of(error: Exception | str) -> str:
    """The line of an error that says why: in a traceback of Ray's that of the exception which was raised
    first, or else the first line.
    """
    text = str(error)
    lines = RAISED.findall(CHAINED.split(text)[0]) or RAISED.findall(text)
    return (
        lines[-1].strip()
        if lines
        else next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    )


def job_failed(
    error: Exception, folder: str | None, *, doing: str, cause: str, remedy: str
) -> JobFailedError:
    """An error to raise; all that is known is written into the folder, if there is one."""
    if folder is None:
        everything = "--debug shows everything"
    else:
        file = storage.join(folder, ERROR_FILE)
        storage.write_text(file, f"{error}\n")
        everything = f"everything in {file}"
    return JobFailedError(f"{cause} ({doing}; {everything})", f"mend the cause, then {remedy}")


@contextlib.contextmanager
def going_on(doing: str, remedy: str, *, folder: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Say how to go on with a job of which something fails beside the training, or is stopped there.

    Args:
        doing: What is done meanwhile, such as "while the model was judged".
        remedy: How to go on.
        folder: Of the job.
        say: Takes the lines for the user.

    Raises:
        JobFailedError: For what Ray or the storage raises.
    """
    from ray.exceptions import RayError

    logger = logging.getLogger("ray.data")
    level = logger.level
    if (
        level == logging.ERROR
    ):  # Not in a debugging session. Ray Data would print tracebacks before it raises them.
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (RayError, OSError, pa.ArrowException) as error:
        raise job_failed(error, folder, doing=doing, cause=cause_of(error), remedy=remedy) from error
    except KeyboardInterrupt as stop:
        say(f"stopped; {remedy}")
        raise (TerminatedError if isinstance(stop, TerminatedError) else KeyboardInterrupt) from None
    finally:
        logger.setLevel(level)
