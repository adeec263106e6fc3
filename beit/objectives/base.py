"""`Objective`: the interface between a method and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A model with its loss, as one worker trains it.

    The training loop handles batches, steps, workers and checkpoints; an objective implements the method. On
    every worker and for every step, the loop calls `weight` of the host batch (and adds it up over the
    workers), `start_step`, `forward` on one or more parts of the batch, backward on
    `sums["loss"] * workers / total weight`, the optimizer, and `finish_step`. So the loss is the mean over
    the global batch, whatever the number of workers or parts.
    """

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of the batch that `forward` reads; the loop moves these to the device."""

    @abstractmethod
    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Return the number of terms in the summed loss of this batch, such as hidden patches or images.

        Reads host arrays only, so it waits for no device.
        """

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the batch.

        "loss" carries the gradient. All others are detached and of a fixed shape, so that workers can add
        them up.
        """

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer over this module's parameters."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ...; a parameter group multiplies it by its "lr_scale"."""

    def start_step(self, step: int) -> None:
        """Set everything that depends on the step (temperatures, weights of terms)."""

    def finish_step(self, step: int) -> None:
        """Update everything that follows an optimizer step (moving averages)."""

    @abstractmethod
    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Return the metrics to report, from sums over all workers and all steps since the last report.

        Called on rank 0 only.
        """

    def unseen_metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Return the `metrics` of samples that are not trained on, from `forward` in evaluation mode.

        Nothing that `metrics` accumulates in training is used or changed.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is not measured on samples that it is not trained on"
        )

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model, and everything that `metrics` accumulates, into a checkpoint folder.

        Called on rank 0 only.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote. Called on every rank."""


def derive(seed: int, purpose: int, step: int, worker: int) -> int:
    """Derive a seed for torch from four numbers."""
    return int(np.random.SeedSequence([seed, purpose, step, worker]).generate_state(1, np.uint64)[0] >> 1)


def worker_rank() -> int:
    """Return this worker's rank; 0 without `torch.distributed`."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )
