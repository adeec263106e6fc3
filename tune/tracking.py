"""Log sweeps and ablations to MLflow: one parent run, and a child for each trial or job. The driver ends all
of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipelines import storage
from pipelines.config.jobs import JobConfig
from pipelines.runs import tracking
from tune.goal import Goal
from tune.state import Trial

ENDS = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "running": "KILLED",
    "waiting": "KILLED",
}
"""State in MLflow for that of a trial or job. "running" and "waiting": its sweep or ablation ended first."""


class ParentLog:
    """The parent run. Its children are started by their own jobs, like any run.

    Args:
        folder: Folder with the run folders of the children.
        config: Configuration of the sweep or ablation.
        job: Name of the command.
        preset: Its preset.
        say: Takes the lines for the user.

    Raises:
        UserError: If MLflow cannot be used.
    """

    def __init__(
        self, folder: str, config: JobConfig, *, job: str, preset: str, say: Callable[[str], None]
    ) -> None:
        self._folder, self._say = folder, say
        self.place = tracking.place_of_job(folder, config, job=job, preset=preset)
        if self.place is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        if self.place is not None:
            tracking.begin(folder, self.place, say)
        self._log = tracking.MlflowLog(folder, self.place) if self.place else None

    @property
    def link(self) -> str | None:
        """The link to the parent run."""
        return tracking.link(self._folder, self.place) if self.place else None

    def end_child(self, name: str, status: str) -> None:
        """End the MLflow run of a child that has ended or was killed."""
        if self.place is not None:
            tracking.end_orphan(storage.join(self._folder, name), self.place, ENDS[status])

    def enter(self, step: int, figures: Mapping[str, Any]) -> None:
        """Log figures (`group/name`) of the parent."""
        if self._log is not None:
            with suppress(Exception):  # The sweep continues if the server is lost.
                self._log.log({"step": step, "time": time.time(), **figures})

    def finish(self, status: str, files: Sequence[str] = ()) -> None:
        """Attach files of the folder, and end the parent as FINISHED, FAILED or KILLED."""
        if self._log is None or self.place is None:
            return
        there = [name for name in files if storage.exists(storage.join(self._folder, *name.split("/")))]
        if there and not tracking.attach(self._folder, self.place, there):
            self._say(f"warning: MLflow cannot be reached; the report is in {self._folder} only")
        with suppress(Exception):
            self._log.finish(status)


class SweepLog(ParentLog):
    """The parent run of a sweep, with the best objective so far."""

    def end_trial(self, trial: Trial) -> None:
        """End the MLflow run of a trial that has ended or was killed."""
        self.end_child(trial.name, trial.status)

    def best(self, goal: Goal, trials: Sequence[Trial]) -> None:
        """Log the best objective so far; the step is the number of trials that have ended."""
        ended = [trial.last for trial in trials if trial.ended and trial.last is not None]
        if ended:
            self.enter(len(ended), {"sweep/best_objective": goal.best(ended)})


def check_store(config: JobConfig, folder: str) -> None:
    """Check that MLflow answers, before anything is computed.

    Raises:
        UserError: If it cannot be used.
    """
    place = (
        tracking.place_of(folder, experiment=config.output.experiment, params={})
        if config.output.mlflow
        else None
    )
    if place is not None and not place.is_own_file:
        tracking.check(place)
