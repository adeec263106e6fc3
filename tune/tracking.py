"""MLflow: one parent run a sweep, a child a trial. The sweep's driver sees to it that every one of them ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pipelines import storage, tracking
from tune.config import SweepConfig
from tune.goal import Goal
from tune.state import Trial

ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "KILLED"}
"""MLflow's state of a trial: "running" is what it was when the sweep ended before it."""


class SweepLog:
    """The parent run of a sweep; the children are begun by the trials themselves, like any run's.

    Args:
        sweep: The sweep's folder.
        config: The sweep.
        preset: Its preset.
        say: Takes the lines for the user.

    Raises:
        UserError: If MLflow cannot be used.
    """

    def __init__(self, sweep: str, config: SweepConfig, *, preset: str, say: Callable[[str], None]) -> None:
        self._sweep, self._say = sweep, say
        self.place = tracking.place_of_job(sweep, config, job="sweep", preset=preset)
        if self.place is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        self._log = tracking.MlflowLog(sweep, self.place) if self.place else None

    @property
    def link(self) -> str | None:
        """Where to look at it."""
        return tracking.link(self._sweep, self.place) if self.place else None

    def end_trial(self, trial: Trial) -> None:
        """See to it that a trial that has ended, or never will, is not shown as running."""
        if self.place is not None:
            tracking.end_orphan(storage.join(self._sweep, trial.name), self.place, ENDS[trial.status])

    def best(self, goal: Goal, trials: Sequence[Trial]) -> None:
        """Enter the best objective so far; the step is the number of trials that have ended."""
        ended = [trial.last for trial in trials if trial.ended and trial.last is not None]
        if self._log is None or not ended:
            return
        with suppress(Exception):  # A server that went away does not end a sweep.
            self._log.log({"step": len(ended), "time": time.time(), "sweep/best_objective": goal.best(ended)})

    def finish(self, status: str, files: Sequence[str] = ()) -> None:
        """Attach files of the sweep's folder, and end the parent as FINISHED, FAILED or KILLED."""
        if self._log is None or self.place is None:
            return
        there = [name for name in files if storage.exists(storage.join(self._sweep, *name.split("/")))]
        if there and not tracking.attach(self._sweep, self.place, there):
            self._say("warning: MLflow cannot be reached; the report is in the sweep's folder only")
        with suppress(Exception):
            self._log.finish(status)


def check_store(config: SweepConfig, sweep: str) -> None:
    """Ask MLflow for a sign of life before anything is computed.

    Raises:
        UserError: If it cannot be used.
    """
    place = tracking.place_of(sweep, experiment=config.output.experiment, params={}) if config.output.mlflow else None
    if place is not None and not place.is_own_file:
        tracking.check(sweep, place)
