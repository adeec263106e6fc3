"""The actor beside the driver that writes progress lines, metrics.jsonl and MLflow."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

from pipelines import storage
from pipelines.runs.metrics import METRICS_FILE, REWIND, parse_rows, step_of_row
from pipelines.runs.progress import progress_line
from pipelines.runs.tracking import MlflowLog, MlflowRun, trouble

LOG_FILE = "train.log"

# Objects cannot be truncated or appended to: on a bucket a growing file is a folder of part files, one a
# minute at most.
PART_SECONDS = 60

# After a failure of the tracking server nothing is sent to it for this long: each attempt may wait, and the
# progress lines with it.
MLFLOW_PAUSE_SECONDS = 60


class Recorder:
    """Writes the rows of metrics that rank 0 sends: files and SQLite live where the driver is.

    Args:
        run: Run folder.
        total_steps: Steps of the whole run, for the progress line.
        shown: What the progress line shows, as (format, names of metrics).
        mlflow: The run's place in MLflow; None: no MLflow.
    """

    def __init__(
        self, run: str, total_steps: int, shown: list[tuple[str, str]], mlflow: MlflowRun | None
    ) -> None:
        self._run, self._total_steps, self._shown, self._place = run, total_steps, shown, mlflow
        self._lines: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._failure: tuple[str, str] | None = None
        self._starts, self._stopping, self._heard = 0, False, False
        self._metrics = _Growing(run, METRICS_FILE, "metrics", self._lines.append)
        self._log = _Growing(run, LOG_FILE, "log", self._lines.append)
        self._mlflow = MlflowLog(run, mlflow) if mlflow else None
        self._mlflow_again_at = -math.inf
        self._mlflow_told = False

    def log(self, row: dict[str, Any], seconds_left: float) -> None:
        """Enter a row of metrics: "step", "images", "time" and `group/name` values."""
        # JSON has no NaN: an undefined value is null.
        defined = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._metrics.append(json.dumps(defined))
        self._rows.append(defined)
        self.say(
            progress_line(row, total_steps=self._total_steps, seconds_left=seconds_left, shown=self._shown)
        )
        if time.monotonic() >= self._mlflow_again_at:
            self._tell_mlflow(lambda mlflow: mlflow.log(row))

    def say(self, line: str) -> None:
        """Show a line on the driver and keep it in train.log."""
        self._lines.append(line)
        self._log.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def lines(self) -> list[str]:
        """The lines since the last call."""
        lines = list(self._lines)
        self._lines.clear()  # Not a new list: the files warn by the one they know.
        return lines

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def give_up(self, cause: str, remedy: str) -> None:
        """End the run for a reason that a restart of the workers would not mend."""
        self._failure = (cause, remedy)

    def failure(self) -> tuple[str, str] | None:
        """Cause and remedy, if the workers gave up."""
        return self._failure

    def stop(self) -> None:
        """Ask the workers to write a last checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether the workers shall end; rank 0 asks between steps."""
        self._heard = self._stopping
        return self._stopping

    def workers(self) -> tuple[bool, bool]:
        """Whether workers have begun, and whether they know that they shall end."""
        return self._starts > 0, self._heard

    def begin(self, step: int) -> int:
        """Drop the rows after the step whose weights the workers begin with: those steps are trained again.

        Returns:
            How often workers have begun before, in this attempt.
        """
        self._starts += 1
        self._rewind(step)
        return self._starts - 1

    def _rewind(self, step: int) -> None:
        if storage.is_remote(self._run):
            self._metrics.keep(lambda line: step_of_row(json.loads(line)) <= step)
            self._metrics.append(json.dumps({REWIND: step, "time": time.time()}))
            self._metrics.flush()
            return
        file = storage.join(self._run, METRICS_FILE)
        if storage.exists(file):
            text = storage.read_text(file)
            rows = parse_rows(text)
            if torn := len(text.splitlines()) - len(rows):
                self.say(f"warning: {torn} torn line{'s' * (torn > 1)} of {METRICS_FILE} left out")
            kept = [row for row in rows if step_of_row(row) <= step]
            storage.write_text(file, "".join(f"{json.dumps(row)}\n" for row in kept))

    def finish(self, status: str) -> None:
        """Write pending lines and end the MLflow run as FINISHED, FAILED or KILLED."""
        self._metrics.flush()
        self._tell_mlflow(lambda mlflow: mlflow.finish(status))
        self._log.flush()

    def _tell_mlflow(self, tell: Callable[[MlflowLog], None]) -> None:
        """Send something to MLflow. A failure of the server is said once, and ends no run."""
        if self._mlflow is None or self._place is None:
            return
        try:
            tell(self._mlflow)
        except Exception as error:  # MLflow raises its own, those of requests and those of SQLAlchemy.
            self._mlflow_again_at = time.monotonic() + MLFLOW_PAUSE_SECONDS
            if not self._mlflow_told:
                self._mlflow_told = True
                self.say(f"{trouble(self._place.uri, error)}; metrics go on in {self._metrics.name}")


class _Growing:
    """A text file of the run folder that grows by lines; on an object store a folder of part files.

    Where it cannot be written (a full disk, a bucket that does not answer) the training goes on: that is said
    once, and the lines are written as soon as they can be.
    """

    def __init__(self, run: str, file: str, folder: str, warn: Callable[[str], None]) -> None:
        self._run, self._file, self._folder = run, file, folder
        self._suffix = ".jsonl" if file.endswith(".jsonl") else ".txt"
        self._remote = storage.is_remote(run)
        self._pending: list[str] = []
        self._part_at = time.monotonic()
        self._warn, self._failed = warn, False
        self.name = f"{folder}/" if self._remote else file

    def append(self, line: str) -> None:
        self._pending.append(line)
        if not self._remote or time.monotonic() - self._part_at > PART_SECONDS:
            self.flush()

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Drop the other lines that are not written yet."""
        self._pending = [line for line in self._pending if wanted(line)]

    def flush(self) -> None:
        if not self._pending:
            return
        self._part_at = time.monotonic()
        text = "".join(f"{line}\n" for line in self._pending)
        try:
            if self._remote:
                part = storage.join(self._run, self._folder, f"{time.time_ns()}{self._suffix}")
                storage.write_text(part, text)
            else:
                _append(storage.join(self._run, self._file), text)
        except OSError as error:
            if not self._failed:
                self._warn(f"warning: {self.name} cannot be written, and is as soon as it can be: {error}")
            self._failed = True
        else:
            self._pending, self._failed = [], False


def _append(path: str, text: str) -> None:
    """Append lines to a local file, all or none of them; a torn line that is there already is ended."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        left = text.encode() if not size or _ends_a_line(path) else b"\n" + text.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


def _ends_a_line(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
