"""The optimizer step on a global batch: workers, micro-batches, precision, clipping.

It knows neither method nor Ray.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from beit.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the steps since the last report have gathered."""

    sums: dict[str, NDArray[Any]]
    """The objective's sums, over all workers and all steps but those that were skipped."""

    weight: float
    """Terms of the loss that they are of."""

    norm: float
    """Gradient norm of the last step."""

    skipped: int
    """Steps that were skipped, as their gradient was not finite."""

    skipped_in_row: int
    """Steps up to the last one that were skipped one after the other, also before the last report."""


def share_of(global_batch_size: int, rank: int, workers: int) -> int:
    """Images of a worker's batch: an equal share, and one more on the first ranks where the division leaves a
    rest.
    """
    return global_batch_size // workers + (rank < global_batch_size % workers)


class Stepper:
    """One worker's part of the steps that all workers take together on one objective.

    The loss is the mean over all terms of the global batch (hidden patches, images), however they are divided
    among workers and micro-batches: one worker and four give the same gradient to rounding.

    Args:
        objective: Model and loss, on `device`.
        device: Where this worker computes.
        micro_batch_size: Images put through the model at once; None: all that a step brings.
        clip_norm: Gradient norm above which gradients are scaled down; None: never.
        bf16: Compute in bfloat16 where autocast does.
        compile: Compile the objective with torch.compile.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        device: torch.device,
        micro_batch_size: int | None = None,
        clip_norm: float | None = None,
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank, self.workers = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        self.objective, self.device = objective, device
        self.optimizer = objective.optimizer()
        self._micro_batch_size, self._clip_norm, self._bf16 = micro_batch_size, clip_norm, bf16
        if compile:
            objective.compile()
        self._model: torch.nn.Module = objective
        self._host_group: Any = None
        if self.workers > 1:
            devices = [device] if device.type == "cuda" else None
            self._model = torch.nn.parallel.DistributedDataParallel(
                objective, device_ids=devices, broadcast_buffers=False
            )
            # Small numbers are exchanged between hosts every step; through the devices they would cost a
            # synchronisation.
            self._host_group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._norm = torch.zeros((), device=device)
        self._sums: dict[str, Tensor] = {}
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._skipped, self._skipped_in_row = torch.zeros((), device=device), torch.zeros((), device=device)
        self.rate = 0.0
        """Learning rate of the last step."""

    def step(self, step: int, batch: dict[str, Tensor], weight: float) -> None:
        """Take a step.

        Args:
            step: Its number, from 0.
            batch: This worker's share, on the device.
            weight: Terms of the global batch: `Objective.weight` added up over the workers.
        """
        self.rate = self.objective.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("lr_scale", 1.0)
        self.objective.start_step(step)
        self.optimizer.zero_grad(set_to_none=True)
        images = len(next(iter(batch.values())))
        micro = self._micro_batch_size or images
        sums: dict[str, Tensor] = {}
        for start in range(0, images, micro):
            last = start + micro >= images
            with contextlib.nullcontext() if last or self.workers == 1 else self._model.no_sync():  # type: ignore[operator]
                part = {name: column[start : start + micro] for name, column in batch.items()}
                for name, value in self._backward(part, weight).items():
                    sums[name] = sums[name] + value if name in sums else value
        skipped = self._update()
        self.objective.finish_step(step)
        # The sums of a skipped step may be NaN. All of this stays on the device: no step waits for it.
        for name, value in sums.items():
            value = torch.where(skipped, 0.0, value)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weight = self._weight + torch.where(skipped, 0.0, weight)
        self._skipped = self._skipped + skipped
        self._skipped_in_row = (self._skipped_in_row + 1) * skipped

    def _backward(self, part: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
        """Add the gradient of a micro-batch; returns the objective's sums over it."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            sums = self._model(part)
        # DDP takes the mean over the workers; the loss is one over all terms of the global batch.
        (sums["loss"] * (self.workers / max(weight, 1.0))).backward()
        return {name: value.detach().to(torch.float64) for name, value in sums.items()}

    def measure(self, batch: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """The objective's sums over a batch of this worker alone, without a step; its mode and gradients are
        the caller's.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            sums = self.objective(batch)
        return {name: value.to(torch.float64).cpu().numpy() for name, value in sums.items()}

    def _update(self) -> Tensor:
        """Step the optimizer unless the gradient is not finite. DDP gives every worker the same gradient, so
        all agree.

        Returns:
            Bool [], whether the step was skipped.
        """
        parameters = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        self._norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, self._norm)
        # The fused optimizer leaves weights and its own state alone where `found_inf` is 1: no step waits for
        # the device to answer, and the count is read when something is logged.
        skipped = ~torch.isfinite(self._norm)
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return skipped

    def take_sums(self) -> Taken:
        """Return what the steps since the last call have gathered, over all workers. Waits for the device."""
        names = sorted(self._sums)
        flat = [self._sums[name].flatten().cpu().numpy() for name in names]
        total = np.array(self.add_up(np.concatenate([*flat, np.zeros(0)]).tolist()))
        parts = np.split(total, np.cumsum([len(part) for part in flat]))
        sums = {
            name: part.reshape(self._sums[name].shape) for name, part in zip(names, parts[:-1], strict=True)
        }
        taken = Taken(
            sums=sums,
            weight=float(self._weight),
            norm=float(self._norm),
            skipped=int(self._skipped),
            skipped_in_row=int(self._skipped_in_row),
        )
        self._sums, self._weight, self._skipped = {}, self._weight * 0, self._skipped * 0
        return taken

    def add_up(self, values: list[float]) -> list[float]:
        """Sums over the workers, on the hosts. Also a barrier."""
        if self.workers == 1 or not values:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._host_group)
        return tensor.tolist()
