"""Write and read the metrics of a run: rows by step, in one growing file on a disk, or in several on a
bucket.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines import storage

METRICS_FILE = "metrics.jsonl"

# Objects on a bucket cannot be truncated: a row with this key in the part files says that all later steps
# were lost.
REWIND = "rewind"


def step_of_row(row: Mapping[str, Any]) -> int:
    """Return the step that a row of metrics, or a rewind, is about."""
    return int(row[REWIND] if REWIND in row else row["step"])


def parse_rows(text: str) -> list[dict[str, Any]]:
    """Parse lines of metrics. A line that a killed writer or a full disk tore is passed over."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and (REWIND in row or "step" in row):
                rows.append(row)
    return rows


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Read all rows of a run, ordered by step. Rows of lost steps are left out; if a step was trained twice,
    its later row counts.
    """
    if storage.is_remote(run):
        # File names contain times, so this is the order in which the rows were written, even if machines'
        # clocks differ.
        parts = [
            storage.join(run, "metrics", entry.name)
            for entry in storage.list_files(storage.join(run, "metrics"))
        ]
    else:
        parts = [storage.join(run, METRICS_FILE)] if storage.exists(storage.join(run, METRICS_FILE)) else []
    rows: dict[int, dict[str, Any]] = {}
    for part in parts:
        for row in parse_rows(storage.read_text(part)):
            if REWIND in row:
                rows = {step: kept for step, kept in rows.items() if step <= row[REWIND]}
            else:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def last_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last row. Training metrics are averaged over the last twentieth of the steps, because a
    single row is noisy.
    """
    if not rows:
        return {}
    last = rows[-1]
    steps = np.diff([0, *(row["step"] for row in rows)])
    window = [
        (row, count) for row, count in zip(rows, steps, strict=True) if row["step"] > 0.95 * last["step"]
    ]
    metrics = dict(last)
    for name in last:
        values = [
            (row[name], count)
            for row, count in window
            if name.startswith("train/") and row.get(name) is not None
        ]
        if values:
            metrics[name] = float(
                np.average([value for value, _ in values], weights=[count for _, count in values])
            )
    return metrics


def finite_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row without those that are not finite."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
