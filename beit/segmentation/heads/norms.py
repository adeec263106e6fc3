"""BatchNorm with statistics over the batches of all workers."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def synchronised(model: Model) -> Model:
    """Make a model's BatchNorms use the statistics of all workers, if there is more than one.

    Names and weights stay the same. On GPUs (NCCL) torch's own `SyncBatchNorm` is used; it does not work on
    CPUs, where `HostSyncNorm` takes its place.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return model
    if dist.get_backend() != "gloo":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,no-any-return]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, HostSyncNorm.of(child))
    return model


class HostSyncNorm(nn.BatchNorm2d):
    """BatchNorm on CPUs with the statistics of all workers, computed by two sums over the workers."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> HostSyncNorm:
        """Return the same norm as a `HostSyncNorm` that shares its parameters and buffers."""
        copy = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        copy._parameters, copy._buffers, copy.training = norm._parameters, norm._buffers, norm.training
        return copy

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps [B, C, h, w]."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        count = torch.full((1,), float(values.numel() // self.num_features))
        total = _sum_over_workers(torch.cat([values.sum((0, 2, 3)), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean[:, None, None]
        variance = _sum_over_workers(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        gain = self.weight * (variance + self.eps).rsqrt()
        normal: Tensor = centred * gain[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)


def _sum_over_workers(values: Tensor) -> Tensor:
    """Sum values over all workers; the backward pass sums the gradients of all workers."""
    total: Tensor = distributed.all_reduce(values)  # type: ignore[no-untyped-call]
    return total
