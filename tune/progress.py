"""Ray Tune's callbacks in the driver of a sweep: a line for the user, and each trial's state in its
folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray.tune

from tune.failures import KILLED
from tune.goal import Goal
from tune.space import described
from tune.state import STATES, Trial, read_trial, read_trials, write_trial
from tune.tracking import SweepLog
from tune.trial import OBJECTIVE, POINT, STATUS


class Progress(ray.tune.Callback):
    """Writes the states of the trials. If the driver is killed, `--resume` runs the trials again whose end
    was not written.

    Args:
        sweep: Folder of the sweep.
        goal: Its objective.
        log: Its MLflow run.
        points: Number of points of a trial that is not stopped early.
        trials: Number of trials of the sweep.
        say: Takes the lines for the user.
    """

    def __init__(
        self, sweep: str, goal: Goal, log: SweepLog, *, points: int, trials: int, say: Callable[[str], None]
    ) -> None:
        self._sweep, self._goal, self._log, self._points, self._trials, self._say = (
            sweep,
            goal,
            log,
            points,
            trials,
            say,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Ray Tune would save it, but a resumed sweep does not use it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write that the trial has started."""
        self._note(trial, status="running")
        number = trial.config["number"]
        self._say(f"trial {number} ({number + 1} of {self._trials}): {described(trial.config['params'])}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show a point."""
        if STATUS not in result:
            self._say(
                f"trial {trial.config['number']} | point {result[POINT]}/{self._points} | step "
                f"{result['step']:,} | {self._goal.name} {result[OBJECTIVE]:.4f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write how the trial ended."""
        status = (trial.last_result or {}).get(STATUS)
        if status is None:
            return  # Ray Tune was interrupted: the trial can be resumed.
        self._end(trial, status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say why the trial failed, and write it if the trial could not. The others continue."""
        noted = read_trial(self._sweep, Trial(number=trial.config["number"], params={}).name)
        self._end(trial, "failed", noted.error if noted is not None and noted.status == "failed" else KILLED)

    def _end(self, trial: Any, status: Any, error: str = "") -> None:
        noted = self._note(trial, status=status, error=error)
        self._log.end_trial(noted)
        known = read_trials(self._sweep, self._goal)
        self._log.best(self._goal, known)
        value = next(
            (
                f", {self._goal.name} {one.last:.4f}"
                for one in known
                if one.number == noted.number and one.last is not None
            ),
            "",
        )
        self._say(f"trial {noted.number} {STATES[noted.status]}{value}{f': {error}' if error else ''}")

    def _note(self, trial: Any, *, status: Any, error: str = "") -> Trial:
        noted = Trial(
            number=trial.config["number"], params=trial.config["params"], status=status, error=error
        )
        write_trial(self._sweep, noted)
        return noted
