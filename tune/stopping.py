"""Early stopping: ASHA decides, and the trial ends itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tune.config import SweepConfig
from tune.goal import Goal
from tune.state import Trial, ask_to_stop
from tune.trial import OBJECTIVE, POINT, STATUS


class GentleStop(FIFOScheduler):
    """Asks a trial to end itself, where another scheduler would kill it. The trial then leaves a checkpoint,
    a report and an ended MLflow run.

    Ray Tune itself ends a trial by killing its actor, seconds after it has asked. Its schedulers also lose
    their state when a sweep is resumed, so the first trials after that could not be compared with earlier
    ones: `remember` restores the state.

    Args:
        judge: The scheduler that decides.
        sweep: The sweep's folder.
    """

    def __init__(self, judge: TrialScheduler, sweep: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._judge, self._sweep = judge, sweep
        self._asked: set[str] = set()

    def remember(self, trial: Trial) -> None:
        """Record the points of a trial of an earlier start."""
        known: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        nobody: Any = None
        self._judge.on_trial_add(nobody, known)
        for point, _, value in trial.points:
            self._judge.on_trial_result(nobody, known, {POINT: point, OBJECTIVE: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass on a new trial."""
        self._judge.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record a point. Ray Tune is always told to continue."""
        if STATUS not in result and trial.trial_id not in self._asked:
            decision = self._judge.on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP:
                self._asked.add(trial.trial_id)
                ask_to_stop(self._sweep, Trial(number=trial.config["number"], params={}).name)
        return str(TrialScheduler.CONTINUE)


def scheduler(config: SweepConfig, goal: Goal, sweep: str) -> GentleStop:
    """Make the scheduler of a sweep."""
    if not config.stop_early:
        return GentleStop(FIFOScheduler(), sweep)  # type: ignore[no-untyped-call]
    judge = ASHAScheduler(
        time_attr=POINT,
        metric=OBJECTIVE,
        mode=goal.mode,
        # One more than there are, because a trial ends by itself at its last point.
        max_t=config.evaluation.points + 1,
        grace_period=config.grace_points,
        reduction_factor=config.halving,
        # Each rung decides only once; later points are not compared with those of trials at other times.
        stop_last_trials=False,
    )
    return GentleStop(judge, sweep)


def rungs(config: SweepConfig) -> list[int]:
    """List the points at which trials are compared."""
    found, rung = [], float(config.grace_points)
    while config.stop_early and rung < config.evaluation.points:
        found.append(-int(-rung // 1))
        rung *= config.halving
    return found
