"""Ray Tune's callbacks in the driver of an ablation: lines for the user, and the states of a chain's jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray.tune

from tune.ablation.chain import (
    FIGURES,
    PRETRAIN,
    Chain,
    JobState,
    left_to_do,
    read_state,
    value_of,
    write_state,
)
from tune.ablation.chain_run import CHAIN, LINE
from tune.failures import KILLED
from tune.tracking import ParentLog


class ChainProgress(ray.tune.Callback):
    """Shows the lines of the chains, and says how they end.

    Args:
        folder: The ablation's folder.
        chains: All of them, in their order.
        log: Its MLflow run.
        say: Takes the lines for the user.
    """

    def __init__(
        self, folder: str, chains: list[Chain], log: ParentLog, *, say: Callable[[str], None]
    ) -> None:
        self._folder, self._chains, self._log, self._say = folder, chains, log, say

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Ray Tune would save it, but a resumed ablation does not use it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say which chain begins."""
        chain = self._chain(trial)
        place = f"{self._chains.index(chain) + 1} of {len(self._chains)}"
        self._say(f"{chain.row} seed {chain.seed} ({place}): {', '.join(left_to_do(self._folder, chain))}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show a line."""
        if result.get(LINE):
            self._say(result[LINE])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how the chain ended."""
        chain = self._chain(trial)
        if left_to_do(self._folder, chain):
            return  # Ray Tune was interrupted: the chain can be resumed.
        self._end(chain)
        values = [f"{FIGURES[task]} {value_of(self._folder, chain, task):.2f} %" for task in chain.tasks]
        self._say(f"{chain.row} seed {chain.seed} finished: {', '.join(values)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say why the chain failed; the others continue."""
        chain = self._chain(trial)
        left = left_to_do(self._folder, chain)
        if left and all(read_state(self._folder, chain, job).status != "failed" for job in left):
            write_state(self._folder, chain, left[0], JobState(status="failed", error=KILLED))
        self._end(chain)
        for job in left:
            state = read_state(self._folder, chain, job)
            if state.status == "failed":
                kept = ", so nothing can be fine-tuned" if job == PRETRAIN else ""
                self._say(f"{chain.row} seed {chain.seed} {job} failed{kept}: {state.error}")

    def _end(self, chain: Chain) -> None:
        for job in chain.jobs:
            self._log.end_child(chain.job_name(job), read_state(self._folder, chain, job).status)

    def _chain(self, trial: Any) -> Chain:
        given = trial.config[CHAIN]
        return next(
            chain for chain in self._chains if (chain.row, chain.seed) == (given["row"], given["seed"])
        )
