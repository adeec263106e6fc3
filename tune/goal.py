"""The objective of a sweep: a metric of its trials, and the fields that must be equal so that it can be
compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from beit.errors import UserError
from beit.pretraining.targets import find_target
from pipelines.config.pretrain import PretrainConfig
from pipelines.evaluation.knn import FOLDER as KNN_FOLDER
from pipelines.runs import evaluations
from pipelines.runs.metrics import read_metrics
from tune.config import SweepConfig

Row = Mapping[str, Any]

ANOTHER_TASK = ("tokenizer.", "target.", "model.image_size", "model.patch_size")
"""Fields that change what is predicted, and so what a loss means."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A metric that a run measures during training, and whether high or low values are better."""

    name: str
    mode: Literal["min", "max"]
    value: Callable[[Row], float | None]
    """Reads the metric from a row; None if the row does not have it."""
    meaning: str
    """A sentence for the user."""
    rows: Callable[[str], Sequence[Row]] = read_metrics
    """Reads the rows of a run folder, by step."""
    of_metrics: bool = True
    """Whether the rows are those of the training's metrics."""
    any_task: bool = False
    """Whether it can compare models that predict different targets."""

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is better than the second."""
        return first < second if self.mode == "min" else first > second

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.mode == "min" else max(values)


def _loss(row: Row) -> float | None:
    value = row.get("eval/loss")
    return float(value) if value is not None and math.isfinite(value) else None


def _gain(row: Row) -> float | None:
    accuracy, majority = row.get("eval/accuracy"), row.get("eval/majority")
    if accuracy is None or majority is None or majority >= 1:
        return None
    return float((accuracy - majority) / (1 - majority))


def _knn(row: Row) -> float | None:
    return float(max(row["top1"].values())) if "top1" in row else None


GOALS = {
    "loss": Goal(
        name="loss at fixed masks",
        mode="min",
        value=_loss,
        meaning="the loss on the same images, views and masks for all trials, none of them trained on. The "
        "trials' own losses cannot be "
        "compared: with fewer patches hidden the task is easier, whatever the model has learned.",
    ),
    "accuracy": Goal(
        name="accuracy above its baseline",
        mode="max",
        value=_gain,
        meaning="with the trial's own kind of masks on the same images, the accuracy above that of always "
        "predicting the commonest token: (accuracy - majority) / (1 - majority). Losses at different mask "
        "ratios cannot be compared.",
    ),
    "knn": Goal(
        name="k-NN top-1",
        mode="max",
        value=_knn,
        meaning="top-1 of k-NN on frozen features of labelled images, at the best of the layers evaluated. "
        "After a short pretraining it says little: it can be below that of random weights, although these "
        "are worse for fine-tuning.",
        rows=functools.partial(evaluations.read, kind=KNN_FOLDER),
        of_metrics=False,
        any_task=True,
    ),
}
"""Objectives by the name that `--objective` takes."""


def check_goal(config: SweepConfig, varied: Iterable[str]) -> Goal:
    """Refuse a space that varies what the objective depends on.

    Raises:
        UserError: If the space changes the task, the target has no accuracy, or there are no labelled images.
    """
    goal = GOALS[config.objective]
    task = [name for name in varied if name.startswith(ANOTHER_TASK)]
    if task and not goal.any_task:
        raise UserError(
            (
                f"--space {config.space} changes {task[0]}, and neither losses nor accuracies of different "
                "targets can be compared"
            ),
            (
                "run a sweep for each, and compare what their models are good for by beit finetune; or set "
                "--objective knn"
            ),
        )
    if config.objective == "accuracy" and not find_target(config.target.kind).judged:
        raise UserError(
            f"--objective accuracy, but target.kind={config.target.kind} has none", "set --objective loss"
        )
    if config.objective == "knn" and config.knn.val is None and (config.data.train or config.knn.train):
        raise UserError(
            "--objective knn, but knn.val is not given, so there is nothing to be judged by",
            "set --knn.val to labelled images",
        )
    return goal


def evaluated(config: PretrainConfig, objective: str, images: int) -> PretrainConfig:
    """Return a trial's pretraining with its measurement: fixed samples with their masks, or pauses for
    k-NN.

    Args:
        config: The trial's configuration.
        objective: The sweep's objective, a name in `GOALS`.
        images: Number of images in an epoch.
    """
    if objective == "accuracy":
        return replace(config, evaluation=replace(config.evaluation, mask=config.mask))
    if objective == "knn":
        steps = config.total_steps(images, config.optim.global_batch_size)
        # Rounded up, so that there are too few points rather than too many: ASHA would stop a trial at its
        # last point before the trial ends.
        return replace(config, knn=replace(config.knn, every_steps=-(-steps // config.evaluation.points)))
    return config
