"""Where the parameters of the next trial come from: a plan that was drawn beforehand, or Optuna, which learns from the trials before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from beit.errors import UserError
from tune.config import SweepConfig
from tune.goal import Goal
from tune.space import Params, Space, is_grid, rounded
from tune.state import Trial
from tune.trial import OBJECTIVE


class Planned(Searcher):
    """Trials that are known beforehand, in their order."""

    def __init__(self, entries: list[dict[str, Any]], goal: Goal) -> None:
        super().__init__(metric=OBJECTIVE, mode=goal.mode)
        self._entries = list(entries)

    def suggest(self, trial_id: str) -> Any:
        """The next one."""
        return self._entries.pop(0) if self._entries else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Changes nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def check_search(config: SweepConfig, space: Space) -> None:
    """Refuse a search that cannot be done.

    Raises:
        UserError: If Optuna is asked for and is not installed, or the space has a grid, which it does not know.
    """
    if config.search != "optuna":
        return
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search optuna needs the package optuna", "pip install 'beit-pretraining[optuna]'")
    grids = [name for name, values in space.items() if is_grid(values)]
    if grids:
        raise UserError(f"--search optuna, but --space {config.space} has a grid for {grids[0]}", "write a choice in place of it")


class Learned(Searcher):
    """Optuna's suggestions as trials of the sweep, with a number each.

    Args:
        space: What is varied.
        goal: What is good.
        seed: Of the sweep.
        earlier: Trials of earlier starts: ended ones are learned from, the others go on first.
        trials: How many there shall be in all.
        entry: Makes what a trial is given.
    """

    def __init__(
        self, space: Space, goal: Goal, *, seed: int, earlier: list[Trial], trials: int, entry: Callable[[Trial], dict[str, Any]]
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=goal.mode)
        from ray.tune.search.optuna import OptunaSearch

        known = [trial for trial in earlier if trial.ended and trial.last is not None]
        learned: Any = {"points_to_evaluate": [trial.params for trial in known], "evaluated_rewards": [trial.last for trial in known]}
        self._optuna = OptunaSearch(space, metric=OBJECTIVE, mode=goal.mode, seed=seed + len(earlier), **(learned if known else {}))
        self._waiting = [trial for trial in earlier if not trial.ended]
        self._next, self._trials, self._entry = len(earlier), trials, entry
        self._suggested: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """The next trial, those that were interrupted first."""
        if self._waiting:
            return self._entry(self._waiting.pop(0))
        if self._next >= self._trials:
            return str(Searcher.FINISHED)
        suggested = self._optuna.suggest(trial_id)
        if suggested is None:
            return None
        params: Params = {name: rounded(value) if isinstance(value, float) else value for name, value in suggested.items()}
        self._next += 1
        self._suggested.add(trial_id)
        return self._entry(Trial(number=self._next - 1, params=params))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how good a trial was; those of earlier starts it does not know by this id."""
        if trial_id in self._suggested:
            self._optuna.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
