"""Evaluate frozen features: k nearest neighbours and a linear classifier (arXiv 2106.08254, appendix D).

N training images, M images to evaluate, D width of a feature, K classes. On a CPU everything is
deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from beit.classification.metrics import judge, summarise
from beit.probing.config import KnnConfig, LinearConfig

QUERIES_AT_ONCE = 256
ROWS_AT_ONCE = 4096
LOGITS_AT_ONCE = 1 << 22
"""Evaluating one logit takes about 20 bytes."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy on a set of images."""

    images: int
    top1: float
    top5: float


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features [N, D] of images, float16 or float32, and their labels int64 [N]."""

    features: NDArray[np.floating]
    labels: NDArray[np.int64]

    def tensors(self, device: str) -> tuple[Tensor, Tensor]:
        """Return both as tensors on a device."""
        return torch.from_numpy(self.features).to(device), torch.from_numpy(self.labels).to(device)


def knn_votes(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, config: KnnConfig
) -> Iterator[Tensor]:
    """Yield the votes of the nearest training images for each class, some queries at a time.

    Args:
        train: Float [N, D], of any precision; similarities are computed in float32.
        labels: int64 [N].
        queries: Float [M, D].
        classes: K.
        config: How many neighbours vote, and how.

    Yields:
        Float32 [m, K], M rows in total: the sum of the votes for each class. This needs 4 N (D + 256) bytes
        in addition to the arguments.
    """
    known = train.to(torch.float32, copy=True)
    # In place, because a second copy might not fit into memory.
    for rows in torch.split(known, ROWS_AT_ONCE):
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for part in torch.split(queries, QUERIES_AT_ONCE):
        similarity = F.normalize(part.float(), dim=1) @ known.T
        nearest, which = similarity.topk(min(config.neighbours, len(train)), dim=1)
        # Relative to the nearest: the same order of classes, and no overflow at any temperature.
        weights = ((nearest - nearest[:, :1]) / config.temperature).exp()
        yield torch.zeros(len(part), classes, device=train.device).scatter_add(1, labels[which], weights)


def fit_linear(
    train: Tensor, labels: Tensor, classes: int, config: LinearConfig, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Train a linear classifier on features.

    Each number of a feature is first standardised over the training images, to mean 0 and standard deviation
    1. Layers differ much in scale, and this way one learning rate suits all of them. (MAE, arXiv 2111.06377,
    appendix A, uses a BatchNorm for the same purpose.) The result applies to features that are not
    standardised.

    Args:
        train: Float [N, D], of any precision; converted to float32 one batch at a time.
        labels: int64 [N].
        classes: K.
        config: Optimizer and schedule.
        seed: Seeds the order of the images. Weights begin at 0.

    Returns:
        Weight [K, D] and bias [K], float32.
    """
    mean, std = _moments(train)
    weight = torch.zeros(classes, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(classes, device=train.device, requires_grad=True)
    rate = config.lr * config.batch_size / 256
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": config.weight_decay}, {"params": [bias], "weight_decay": 0.0}],
        lr=rate,
        fused=True,
    )
    generator = torch.Generator().manual_seed(seed)
    size = min(config.batch_size, len(train))
    steps = len(train) // size
    for epoch in range(config.epochs):
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for step in range(steps):
            now = rate * 0.5 * (1 + math.cos(math.pi * (epoch * steps + step) / (config.epochs * steps)))
            for group in optimizer.param_groups:
                group["lr"] = now
            batch = order[step * size : (step + 1) * size]
            loss = F.cross_entropy(F.linear((train[batch].float() - mean) / std, weight, bias), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        plain = weight / std
        return plain, bias - plain @ mean


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D]; a number that does not vary gets the standard deviation 1."""
    count = len(features)
    parts = [features[start : start + ROWS_AT_ONCE] for start in range(0, count, ROWS_AT_ONCE)]
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    square = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0) / count
    std = square.sqrt()
    return mean.float(), torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0).float()


def score(logits: Iterable[Tensor], labels: NDArray[np.int64]) -> Score:
    """Compute accuracies on labels [M] from logits or votes [m, K], some images at a time.

    Among equal logits, the lower class number ranks first.
    """
    judged: list[dict[str, NDArray[Any]]] = []
    start, classes = 0, 0
    for part in logits:  # All logits of 50,000 images and 22,000 classes would take 4 GiB.
        found = judge(part.cpu(), torch.from_numpy(labels[start : start + len(part)]))
        judged.append({name: value.numpy() for name, value in found.items()})
        start, classes = start + len(part), part.shape[1]
    result = summarise(
        labels, {name: np.concatenate([part[name] for part in judged]) for name in judged[0]}, classes
    )
    return Score(images=result.images, top1=result.top1, top5=result.top5)


def probe_knn(
    train: Labelled, val: Labelled, classes: int, config: KnnConfig, *, device: str = "cpu"
) -> Score:
    """Return the accuracy of k nearest neighbours from `train` on `val`."""
    return score(knn_votes(*train.tensors(device), val.tensors(device)[0], classes, config), val.labels)


@torch.inference_mode()
def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    for part in torch.split(features, max(64, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // len(weight)))):
        yield F.linear(part.float(), weight, bias)


def probe_linear(
    train: Labelled, val: Labelled, classes: int, config: LinearConfig, *, seed: int, device: str = "cpu"
) -> Score:
    """Return the accuracy on `val` of a linear classifier trained on `train`."""
    weight, bias = fit_linear(*train.tensors(device), classes, config, seed=seed)
    return score(_logits(val.tensors(device)[0], weight, bias), val.labels)
