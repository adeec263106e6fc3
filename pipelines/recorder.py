"""The actor beside the driver that writes what is reported: progress lines, metrics.jsonl, MLflow."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from pipelines import storage
from pipelines.tracking import MlflowLog, MlflowRun

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"

# An object store has no append: what grows is written there as part files, one at most so often.
PART_SECONDS = 60


class Recorder:
    """Rank 0 sends metric rows; files and SQLite live where the driver is.

    Args:
        run: Run folder.
        total_steps: Steps of the whole run, for the progress line.
        shown: What the progress line shows, as (format, names of metrics).
        mlflow: The run's place in MLflow; None: no MLflow.
    """

    def __init__(self, run: str, total_steps: int, shown: list[tuple[str, str]], mlflow: MlflowRun | None) -> None:
        self._run, self._total_steps, self._shown = run, total_steps, shown
        self._lines: list[str] = []
        self._failure: tuple[str, str] | None = None
        self._pending: list[dict[str, Any]] = []
        self._part, self._part_at = 0, time.monotonic()
        self._mlflow = MlflowLog(run, mlflow) if mlflow else None

    def log(self, row: dict[str, Any], seconds_left: float) -> None:
        """Enter a row of metrics: "step", "images", "time" and `group/name` values."""
        self._append(row)
        self.say(progress_line(row, total_steps=self._total_steps, seconds_left=seconds_left, shown=self._shown))
        if self._mlflow:
            self._mlflow.log(row)

    def say(self, line: str) -> None:
        """Show a line on the driver and keep it in train.log."""
        self._lines.append(line)
        if not storage.is_remote(self._run):
            with open(storage.join(self._run, LOG_FILE), "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def lines(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def give_up(self, cause: str, remedy: str) -> None:
        """The workers stop for a reason that starting again would not mend."""
        self._failure = (cause, remedy)

    def failure(self) -> tuple[str, str] | None:
        """Cause and remedy, if the workers gave up."""
        return self._failure

    def rewind(self, step: int) -> None:
        """The weights are those of an earlier step: rows after it describe steps that never were."""
        if storage.is_remote(self._run):
            return  # Part files are joined by the report, which keeps the newest row of a step.
        file = storage.join(self._run, METRICS_FILE)
        if storage.exists(file):
            rows = [line for line in storage.read_text(file).splitlines() if json.loads(line)["step"] <= step]
            storage.write_text(file, "".join(f"{line}\n" for line in rows))

    def finish(self, status: str) -> None:
        """Write out what is pending and end the MLflow run as FINISHED, FAILED or KILLED."""
        self._flush()
        if self._mlflow:
            self._mlflow.finish(status)

    def _append(self, row: dict[str, Any]) -> None:
        # JSON has no NaN: what is not defined is null.
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        self._pending.append(row)
        if not storage.is_remote(self._run) or time.monotonic() - self._part_at > PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self._pending)
        if not text:
            return
        if storage.is_remote(self._run):
            storage.write_text(storage.join(self._run, "metrics", f"{time.time_ns()}.jsonl"), text)
        else:
            with open(storage.join(self._run, METRICS_FILE), "a") as file:
                file.write(text)
        self._pending, self._part_at = [], time.monotonic()


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All rows of a run, by step; where a step was trained twice, the later one counts."""
    if storage.is_remote(run):
        parts = [storage.join(run, "metrics", entry.name) for entry in storage.list_files(storage.join(run, "metrics"))]
    else:
        parts = [storage.join(run, METRICS_FILE)] if storage.exists(storage.join(run, METRICS_FILE)) else []
    rows = [json.loads(line) for part in parts for line in storage.read_text(part).splitlines()]
    return sorted({row["step"]: row for row in sorted(rows, key=lambda row: row["time"])}.values(), key=lambda row: row["step"])


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
        parts.append(f"{row['data/quarantined']:,} bad images")
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
