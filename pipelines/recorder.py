"""The actor beside the driver that writes what is reported: progress lines, metrics.jsonl, MLflow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.tracking import MlflowLog, MlflowRun, trouble

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"

# Nothing on an object store can be cut: a row of this name in the part files says that the steps beyond it were lost.
REWIND = "rewind"

# An object store has no append: what grows is written there as part files, one at most so often.
PART_SECONDS = 60

# A tracking server that failed is left alone so long: every attempt may wait for it, and the progress lines with it.
MLFLOW_PAUSE_SECONDS = 60


class Recorder:
    """Rank 0 sends metric rows; files and SQLite live where the driver is.

    Args:
        run: Run folder.
        total_steps: Steps of the whole run, for the progress line.
        shown: What the progress line shows, as (format, names of metrics).
        mlflow: The run's place in MLflow; None: no MLflow.
    """

    def __init__(self, run: str, total_steps: int, shown: list[tuple[str, str]], mlflow: MlflowRun | None) -> None:
        self._run, self._total_steps, self._shown, self._place = run, total_steps, shown, mlflow
        self._lines: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._failure: tuple[str, str] | None = None
        self._starts, self._stopping, self._heard = 0, False, False
        self._metrics, self._log = _Growing(run, METRICS_FILE, "metrics"), _Growing(run, LOG_FILE, "log")
        self._mlflow = MlflowLog(run, mlflow) if mlflow else None
        self._mlflow_again_at = -math.inf
        self._mlflow_told = False

    def log(self, row: dict[str, Any], seconds_left: float) -> None:
        """Enter a row of metrics: "step", "images", "time" and `group/name` values."""
        # JSON has no NaN: what is not defined is null.
        defined = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        self._metrics.append(json.dumps(defined))
        self._rows.append(defined)
        self.say(progress_line(row, total_steps=self._total_steps, seconds_left=seconds_left, shown=self._shown))
        if time.monotonic() >= self._mlflow_again_at:
            self._tell_mlflow(lambda mlflow: mlflow.log(row))

    def say(self, line: str) -> None:
        """Show a line on the driver and keep it in train.log."""
        self._lines.append(line)
        self._log.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def lines(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def give_up(self, cause: str, remedy: str) -> None:
        """The workers stop for a reason that starting again would not mend."""
        self._failure = (cause, remedy)

    def failure(self) -> tuple[str, str] | None:
        """Cause and remedy, if the workers gave up."""
        return self._failure

    def stop(self) -> None:
        """The driver has to end: the workers are to write a last checkpoint and leave."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether the workers are to leave; rank 0 asks between steps."""
        self._heard = self._stopping
        return self._stopping

    def workers(self) -> tuple[bool, bool]:
        """Whether workers have begun, and whether they know that they are to leave."""
        return self._starts > 0, self._heard

    def begin(self, step: int) -> int:
        """Workers begin with the weights of this step: rows after it describe steps that never were.

        Returns:
            How often workers began before, in this attempt.
        """
        self._starts += 1
        self._rewind(step)
        return self._starts - 1

    def _rewind(self, step: int) -> None:
        if storage.is_remote(self._run):
            self._metrics.keep(lambda line: _step(line) <= step)
            self._metrics.append(json.dumps({REWIND: step, "time": time.time()}))
            self._metrics.flush()
            return
        file = storage.join(self._run, METRICS_FILE)
        if storage.exists(file):
            rows = [line for line in _whole_lines(storage.read_text(file)) if _step(line) <= step]
            storage.write_text(file, "".join(f"{line}\n" for line in rows))

    def finish(self, status: str) -> None:
        """Write out what is pending and end the MLflow run as FINISHED, FAILED or KILLED."""
        self._metrics.flush()
        self._tell_mlflow(lambda mlflow: mlflow.finish(status))
        self._log.flush()

    def _tell_mlflow(self, tell: Callable[[MlflowLog], None]) -> None:
        """A tracking server may come and go: that is said once, and ends no run."""
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
    """A text file of the run folder that grows by lines; on an object store a folder of part files."""

    def __init__(self, run: str, file: str, folder: str) -> None:
        self._run, self._file, self._folder = run, file, folder
        self._suffix = ".jsonl" if file.endswith(".jsonl") else ".txt"
        self._remote = storage.is_remote(run)
        self._pending: list[str] = []
        self._part_at = time.monotonic()
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
        text = "".join(f"{line}\n" for line in self._pending)
        if self._remote:
            storage.write_text(storage.join(self._run, self._folder, f"{time.time_ns()}{self._suffix}"), text)
        else:
            with open(storage.join(self._run, self._file), "a") as file:
                file.write(text)
        self._pending, self._part_at = [], time.monotonic()


def _step(line: str) -> int:
    row = json.loads(line)
    return int(row[REWIND] if REWIND in row else row["step"])


def _whole_lines(text: str) -> list[str]:
    """Without a last line that was being written when its writer was killed."""
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All rows of a run, by step, without those of steps that were lost; where a step was trained twice, the later one counts."""
    if storage.is_remote(run):
        # Their names are times, so this is the order in which the rows came; the clocks of the machines need not agree.
        parts = [storage.join(run, "metrics", entry.name) for entry in storage.list_files(storage.join(run, "metrics"))]
    else:
        parts = [storage.join(run, METRICS_FILE)] if storage.exists(storage.join(run, METRICS_FILE)) else []
    rows: dict[int, dict[str, Any]] = {}
    for part in parts:
        for row in map(json.loads, _whole_lines(storage.read_text(part))):
            if REWIND in row:
                rows = {step: kept for step, kept in rows.items() if step <= row[REWIND]}
            else:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def last_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row, with means over the last twentieth of the steps for what was measured in training: a single row is noisy."""
    last = rows[-1]
    steps = np.diff([0, *(row["step"] for row in rows)])
    window = [(row, count) for row, count in zip(rows, steps, strict=True) if row["step"] > 0.95 * last["step"]]
    metrics = dict(last)
    for name in last:
        values = [(row[name], count) for row, count in window if name.startswith("train/") and row.get(name) is not None]
        if values:
            metrics[name] = float(np.average([value for value, _ in values], weights=[count for _, count in values]))
    return metrics


def progress_line(row: dict[str, Any], *, total_steps: int, seconds_left: float, shown: list[tuple[str, str]]) -> str:
    """The one line that says whether a run is healthy: what is `shown` as (format, metric names), then speed and time left."""
    parts = [f"step {row['step']:,}/{total_steps:,}"]
    for template, names in shown:
        values = [row.get(name) for name in names.split()]
        if all(value is not None and math.isfinite(value) for value in values):
            parts.append(template.format(*values))
    parts.append(f"{row['speed/images_per_second']:,.0f} img/s")
    parts.append(f"data wait {row['speed/data_wait']:.0%}")
    if row.get("data/quarantined"):
        parts.append(f"{row['data/quarantined']:,} bad sample{'s' * (row['data/quarantined'] > 1)}")
    return " | ".join([*parts, f"eta {duration(seconds_left)}"])


def duration(seconds: float) -> str:
    """3725 -> '1h 2m': the two largest units."""
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    whole = max(0, round(seconds))
    parts: list[str] = []
    for name, size in units:
        if whole >= size or (name == "s" and not parts):
            parts.append(f"{whole // size}{name}")
            whole %= size
        elif parts:
            break
    return " ".join(parts[:2])
