"""Read and write the state of a sweep's trials: one small file in each trial's folder, so that a sweep that
was killed can be resumed.

<sweep>/config.json          the sweep's configuration
<sweep>/trial-000/trial.json parameters and state of a trial, next to the files of a run folder
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipelines import storage
from tune.goal import Goal, Row

TRIAL_FILE = "trial.json"
STOP_FILE = "stop"
"""When this file is in a trial's folder, the trial ends itself, with a checkpoint and a report."""

Status = Literal["running", "finished", "stopped", "failed"]

STATES: dict[Status, str] = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "interrupted",
}
"""Descriptions of the states, once a sweep is over."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial. "stopped": stopped early by the sweep. "running": started, even if the sweep itself was
    killed since.
    """

    number: int
    params: dict[str, Any]
    status: Status = "running"
    error: str = ""
    """Why a failed trial failed, in a line."""
    points: tuple[tuple[int, int, float], ...] = field(default=(), compare=False)
    """(point, step, objective), from the trial's folder."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"trial-{self.number:03d}"

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ("finished", "stopped")

    @property
    def last(self) -> float | None:
        """The objective at its last point."""
        return self.points[-1][2] if self.points else None


def write_trial(sweep: str, trial: Trial) -> None:
    """Write a trial's parameters and state into its folder."""
    content = asdict(trial)
    del content["points"]
    storage.write_text(storage.join(sweep, trial.name, TRIAL_FILE), json.dumps(content, indent=1) + "\n")


def read_trials(sweep: str, goal: Goal) -> list[Trial]:
    """Read all trials that have started, by number, with their points."""
    names = [name for name in storage.list_folder(sweep) if re.fullmatch(r"trial-\d+", name)]
    noted = [trial for name in names if (trial := read_trial(sweep, name)) is not None]
    found = [
        replace(trial, points=tuple(points_of(goal.rows(storage.join(sweep, trial.name)), goal)))
        for trial in noted
    ]
    return sorted(found, key=lambda trial: trial.number)


def read_trial(sweep: str, name: str) -> Trial | None:
    """Read a trial without its points; None if nothing was written."""
    file = storage.join(sweep, name, TRIAL_FILE)
    return Trial(**json.loads(storage.read_text(file))) if storage.exists(file) else None


def points_of(rows: Sequence[Row], goal: Goal) -> list[tuple[int, int, float]]:
    """List (point, step, objective) of the rows that have the objective; points count from 1."""
    values = [(row["step"], value) for row in rows if (value := goal.value(row)) is not None]
    return [(point, step, value) for point, (step, value) in enumerate(values, 1)]


def winner(trials: list[Trial], goal: Goal) -> Trial | None:
    """Return the finished trial with the best last value; None if no trial is finished."""
    ended = [trial for trial in trials if trial.status == "finished" and trial.last is not None]
    best: Trial | None = None
    for trial in ended:
        assert trial.last is not None
        if best is None or best.last is None or goal.better(trial.last, best.last):
            best = trial
    return best


def ask_to_stop(sweep: str, name: str) -> None:
    """Ask a trial to end itself."""
    storage.write_text(storage.join(sweep, name, STOP_FILE), "")


def is_asked_to_stop(folder: str) -> bool:
    """Whether the trial in a folder is asked to end itself."""
    return storage.exists(storage.join(folder, STOP_FILE))


def values_of(trials: list[Trial]) -> Mapping[str, list[Any]]:
    """Return the values of each parameter, trial by trial."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    return {name: [trial.params.get(name) for trial in trials] for name in names}
