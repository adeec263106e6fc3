"""Choose the parameters of the next trial: from a plan that was drawn before the sweep, or by Optuna, which
learns from finished trials.
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
    """Hands out the trials of a plan in order."""

    def __init__(self, entries: list[dict[str, Any]], goal: Goal) -> None:
        super().__init__(metric=OBJECTIVE, mode=goal.mode)
        self._entries = list(entries)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial."""
        return self._entries.pop(0) if self._entries else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: a plan does not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def check_search(config: SweepConfig, space: Space) -> None:
    """Refuse a search that is not possible.

    Raises:
        UserError: If Optuna is not installed, or the space has a grid, which Optuna does not support.
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
        space: The fields to vary, with their distributions.
        goal: The objective.
        seed: Seed of the sweep.
        earlier: Trials of earlier starts. Optuna learns from those that have ended; the others are resumed
            first.
        trials: Total number of trials.
        entry: Makes the argument of a trial, or raises `UserError`.
        refused: Called with a trial for which `entry` raised; it counts as a failed trial.
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
        # Numbers may have gaps: of two trials that ran side by side, the first may not have been recorded.
        noted = {trial.number for trial in earlier}
        self._free = [number for number in range(trials) if number not in noted]
        self._suggested: dict[str, str] = {}
        """Optuna's id of a trial, by Ray Tune's id."""

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial that can begin; interrupted trials come first."""
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
        """Tell Optuna the result of a trial. It does not know trials of earlier starts by this id."""
        if (name := self._suggested.pop(trial_id, None)) is not None:
            self._optuna.on_trial_complete(name, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
