"""The one interface between a method and the training loop."""

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
    """A model together with its loss: what one worker trains.

    The training loop knows batches, steps, workers and checkpoints; an objective knows the method.
    The loop calls, on every worker and for every step: `weight` of the host batch (added up over the
    workers), `start_step`, `forward` on one or more parts of the batch, backward on
    `sums["loss"] * workers / total weight`, the optimizer, `finish_step`. So the loss is the mean over the
    global batch, whatever the number of workers or parts.
    """

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of the batch that `forward` reads; the loop moves these to the device."""

    @abstractmethod
    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Terms that the summed loss of this batch has (hidden patches, images). Reads host arrays only: no
        device is waited for.
        """

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch: "loss" carries the gradient, all others are detached and of a fixed shape, so
        that workers can add them.
        """

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over this module's parameters."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...; a parameter group's "lr_scale" multiplies it."""

    def start_step(self, step: int) -> None:
        """Set what changes with the step (temperatures, weights of terms)."""

    def finish_step(self, step: int) -> None:
        """After the optimizer has stepped (moving averages)."""

    @abstractmethod
    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """What is reported, from sums over all workers and all steps since the last report. Called on rank 0
        only.
        """

    def unseen_metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """`metrics` of samples that are not trained on, from `forward` in evaluation mode: what training has
        gathered plays no part.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is not measured on samples that it is not trained on"
        )

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model, and what `metrics` has gathered, into a checkpoint folder. Called on
        rank 0 only.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote. Called on every rank."""


def derive(seed: int, purpose: int, step: int, worker: int) -> int:
    """A seed for torch, from four numbers."""
    return int(np.random.SeedSequence([seed, purpose, step, worker]).generate_state(1, np.uint64)[0] >> 1)


def worker_rank() -> int:
    """Number of this worker; 0 where there is one."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )
