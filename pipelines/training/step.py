"""The optimizer step on a global batch: workers, micro-batches, precision, clipping.

It knows neither method nor Ray.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from beit.objectives.base import Objective


class NotFiniteError(FloatingPointError):
    """A gradient was infinite or NaN. The weights are those before that step."""


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
        self._bad_steps = torch.zeros((), device=device)
        self._norm = torch.zeros((), device=device)
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0
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
        for start in range(0, images, micro):
            last = start + micro >= images
            with contextlib.nullcontext() if last or self.workers == 1 else self._model.no_sync():  # type: ignore[operator]
                self._backward(
                    {name: column[start : start + micro] for name, column in batch.items()}, weight
                )
        self._update()
        self.objective.finish_step(step)
        self._weight += weight

    def _backward(self, part: dict[str, Tensor], weight: float) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            sums = self._model(part)
        # DDP takes the mean over the workers; the loss is one over all terms of the global batch.
        (sums["loss"] * (self.workers / max(weight, 1.0))).backward()
        for name, value in sums.items():
            value = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def measure(self, batch: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """The objective's sums over a batch of this worker alone, without a step; its mode and gradients are
        the caller's.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            sums = self.objective(batch)
        return {name: value.to(torch.float64).cpu().numpy() for name, value in sums.items()}

    def _update(self) -> None:
        """Step the optimizer unless the gradient is not finite. DDP gives every worker the same gradient, so
        all agree.
        """
        parameters = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        self._norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, self._norm)
        # The fused optimizer leaves the weights alone where `found_inf` is 1: no step waits for the device to
        # answer, and the count is read when something is logged or saved.
        bad = (~torch.isfinite(self._norm)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self._bad_steps += bad

    def check_finite(self) -> None:
        """Wait for the device and raise if a gradient since the start was not finite.

        Raises:
            NotFiniteError: On every worker alike.
        """
        if bad := int(self._bad_steps.item()):
            raise NotFiniteError(
                f"{bad} of the last steps had a gradient that is not finite; the weights are those before "
                "them"
            )

    def take_sums(self) -> tuple[dict[str, NDArray[Any]], float, float]:
        """The objective's sums over all workers and the steps since the last call, their weight, and the last
        gradient norm.
        """
        names = sorted(self._sums)
        flat = [self._sums[name].flatten().cpu().numpy() for name in names]
        total = np.array(self.add_up(np.concatenate([*flat, np.zeros(0)]).tolist()))
        parts = np.split(total, np.cumsum([len(part) for part in flat]))
        sums = {
            name: part.reshape(self._sums[name].shape) for name, part in zip(names, parts[:-1], strict=True)
        }
        weight, self._weight, self._sums = self._weight, 0.0, {}
        return sums, weight, float(self._norm)

    def add_up(self, values: list[float]) -> list[float]:
        """Sums over the workers, on the hosts. Also a barrier."""
        if self.workers == 1 or not values:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._host_group)
        return tensor.tolist()
