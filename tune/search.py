"""The search for the parameters of the next trial: a plan drawn beforehand, or Optuna, which learns from
finished trials.
"""

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
    """Hands out the trials of a plan in their order."""

    def __init__(self, entries: list[dict[str, Any]], goal: Goal) -> None:
        super().__init__(metric=OBJECTIVE, mode=goal.mode)
        self._entries = list(entries)

    def suggest(self, trial_id: str) -> Any:
        """The next one."""
        return self._entries.pop(0) if self._entries else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Changes nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def check_search(config: SweepConfig, space: Space) -> None:
    """Refuse a search that is not possible.

    Raises:
        UserError: If Optuna is asked for and is not installed, or the space has a grid, which it does not
            know.
    """
    if config.search != "optuna":
        return
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search optuna needs the package optuna", "pip install 'beit-pretraining[optuna]'")
    grids = [name for name, values in space.items() if is_grid(values)]
    if grids:
        raise UserError(
            f"--search optuna, but --space {config.space} has a grid for {grids[0]}",
            "write a choice in place of it",
        )


class Learned(Searcher):
    """Hands out Optuna's suggestions as numbered trials of the sweep.

    Args:
        space: What is varied.
        goal: What is good.
        seed: Of the sweep.
        earlier: Trials of earlier starts: ended ones are learned from, the others go on first.
        trials: How many there shall be in all.
        entry: Makes what a trial is given, or raises `UserError`.
        refused: Hears of a trial for which it has: it counts, as one that failed.
    """

    def __init__(
        self,
        space: Space,
        goal: Goal,
        *,
        seed: int,
        earlier: list[Trial],
        trials: int,
        entry: Callable[[Trial], dict[str, Any]],
        refused: Callable[[Trial, UserError], None],
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=goal.mode)
        from ray.tune.search.optuna import OptunaSearch

        known = [trial for trial in earlier if trial.ended and trial.last is not None]
        learned: Any = {
            "points_to_evaluate": [trial.params for trial in known],
            "evaluated_rewards": [trial.last for trial in known],
        }
        self._space, self._entry, self._refused = space, entry, refused
        self._optuna = OptunaSearch(
            space, metric=OBJECTIVE, mode=goal.mode, seed=seed + len(earlier), **(learned if known else {})
        )
        self._waiting = [trial for trial in earlier if not trial.ended]
        # Not all from some number on: of two that ran side by side the first may not have been noted.
        noted = {trial.number for trial in earlier}
        self._free = [number for number in range(trials) if number not in noted]
        self._suggested: dict[str, str] = {}
        """What Optuna calls a trial, by Ray Tune's id."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial that can begin, those that were interrupted first."""
        while self._waiting or self._free:
            if not self._waiting:
                name = f"trial-{self._free[0]}"
                suggested = self._optuna.suggest(name)
                if suggested is None:
                    return None
                params: Params = {
                    field: rounded(value, self._space[field]) for field, value in suggested.items()
                }
                self._suggested[trial_id] = name
                self._waiting.append(Trial(number=self._free.pop(0), params=params))
            trial = self._waiting.pop(0)
            try:
                return self._entry(trial)
            except UserError as error:
                self._refused(trial, error)
                self.on_trial_complete(trial_id, error=True)
        return str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how good a trial was; those of earlier starts it does not know by this id."""
        if (name := self._suggested.pop(trial_id, None)) is not None:
            self._optuna.on_trial_complete(name, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
