"""What sweeps and ablations share: they end their MLflow run in every case, and keep what the report says
about how they ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from beit.errors import JobFailedError, UserError
from pipelines import storage
from pipelines.config.jobs import JobConfig
from pipelines.runs import tracking
from tune.tracking import ParentLog

HOW_FILE = "how.json"

Result = TypeVar("Result")


def run_to_the_end(
    work: Callable[[], bool],
    conclude: Callable[[], Result],
    failure: Callable[[Result], str | None],
    *,
    log: ParentLog,
    files: Sequence[str],
    again: str,
    say: Callable[[str], None],
) -> Result:
    """Do the work, write the results however it ends, and end the MLflow run.

    Args:
        work: Does what is left to do; returns False if the user interrupted.
        conclude: Ends the MLflow runs that are still open, and writes table and report of the results so far.
        failure: Returns why a result counts as failed; None if it does not.
        log: The MLflow run.
        files: Files of the folder that are attached to it.
        again: The command that resumes the work.
        say: Takes the lines for the user.

    Raises:
        KeyboardInterrupt: If the user interrupted.
        JobFailedError: If the result counts as failed.
    """
    status, complete = "FAILED", False
    try:
        try:
            complete = work()
        except KeyboardInterrupt:
            status = "KILLED"
        finally:
            result = conclude()
        reason = failure(result)
        status = "KILLED" if not complete else "FAILED" if reason else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        log.finish(status, files)
    if not complete:
        say(f"stopped; resume by {again}")
        raise KeyboardInterrupt
    if reason:
        raise JobFailedError(reason, f"fix the cause, then {again}")
    return result


@dataclass(frozen=True, kw_only=True)
class How:
    """How the last start was run, for the report."""

    seconds: float
    lines: list[str]
    """Sentences: concurrency, tokens."""
    images: int
    """Number of images in an epoch of pretraining."""


def keep_how(folder: str, how: How) -> None:
    """Write `how` into the folder, for the report."""
    storage.write_text(storage.join(folder, HOW_FILE), json.dumps(asdict(how), indent=1) + "\n")


def read_how(folder: str, *, job: str) -> How:
    """Read what `keep_how` wrote.

    Raises:
        UserError: If nothing was written.
    """
    file = storage.join(folder, HOW_FILE)
    if not storage.exists(file):
        raise UserError(f"{folder} was killed before it wrote a report", f"beit {job} --resume {folder}")
    return How(**json.loads(storage.read_text(file)))


def link_of(folder: str, config: JobConfig) -> str | None:
    """Return the link to the MLflow run; None if there is none."""
    place = (
        tracking.place_of(folder, experiment=config.output.experiment, params={})
        if config.output.mlflow
        else None
    )
    return tracking.link(folder, place) if place else None
