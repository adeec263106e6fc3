"""What makes a trial good, and what the space must leave alone for that to be comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from beit.errors import UserError
from pipelines.config import PretrainConfig
from tune.config import SweepConfig

Row = Mapping[str, Any]

ANOTHER_TASK = ("tokenizer.", "target.", "model.image_size", "model.patch_size")
"""Fields that change what is predicted, and so what a loss means."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure of the rows that have one, and which way is better."""

    name: str
    mode: Literal["min", "max"]
    value: Callable[[Row], float | None]
    """Of a row of metrics; None where the row does not say it."""
    meaning: str
    """A sentence for the user."""

    def better(self, first: float, second: float) -> bool:
        """Whether the first is better than the second."""
        return first < second if self.mode == "min" else first > second

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return min(values) if self.mode == "min" else max(values)


def _loss(row: Row) -> float | None:
    value = row.get("eval/loss")
    return float(value) if value is not None and math.isfinite(value) else None


def _gain(row: Row) -> float | None:
    accuracy, majority = row.get("eval/accuracy"), row.get("eval/majority")
    if accuracy is None or majority is None or majority >= 1:
        return None
    return float((accuracy - majority) / (1 - majority))


GOALS = {
    "loss": Goal(
        name="loss at fixed masks",
        mode="min",
        value=_loss,
        meaning="the loss on the same images, views and masks for all trials, none of them trained on. The trials' own losses cannot be "
        "compared: with fewer patches hidden the task is easier, whatever the model has learned.",
    ),
    "accuracy": Goal(
        name="accuracy above its baseline",
        mode="max",
        value=_gain,
        meaning="with the trial's own kind of masks on the same images, the share of what always saying the commonest token gets wrong "
        "that the model gets right: (accuracy - majority) / (1 - majority). Losses at different mask ratios cannot be compared.",
    ),
}
"""By the name that `--objective` takes."""


def check_goal(config: SweepConfig, varied: Iterable[str]) -> Goal:
    """The objective of a sweep.

    Raises:
        UserError: If the space changes the task, or the target has no accuracy.
    """
    goal = GOALS[config.objective]
    task = [name for name in varied if name.startswith(ANOTHER_TASK)]
    if task:
        raise UserError(
            f"--space {config.space} changes {task[0]}, and neither losses nor accuracies of different targets can be compared",
            "run a sweep for each, and compare what their models are good for by beit finetune",
        )
    if config.objective == "accuracy" and config.target.kind == "pixels":
        raise UserError("--objective accuracy, but target.kind=pixels has none", "set --objective loss")
    return goal


def evaluated(config: PretrainConfig, objective: str) -> PretrainConfig:
    """A trial's pretraining with the masks on which it is judged."""
    if objective != "accuracy":
        return config
    return replace(config, evaluation=replace(config.evaluation, mask=config.mask))
