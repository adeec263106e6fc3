"""Accuracy and loss of a classifier: exact counts over a whole set, not averages over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor


def judge(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the prediction, the label's rank and the loss of each image.

    Args:
        logits: Float [B, K].
        labels: int64 [B].

    Returns:
        "prediction" int64 [B]. "rank" int64 [B]: how many classes rank before the label's, by logit; among
        equal logits the lower class number ranks first, and NaN ranks last. So a classifier with constant
        logits, or with NaN, gets no accuracy above chance. "loss" float64 [B]: cross-entropy in nats.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None])
    after = torch.arange(logits.shape[1], device=logits.device) > labels[:, None]
    # The classes after the label's are counted, not those before it: nothing is greater than NaN, so a label
    # with the logit NaN would rank first.
    behind = (logits < own).sum(1) + ((logits == own) & after).sum(1)
    return {
        "prediction": logits.argmax(1),
        "rank": logits.shape[1] - 1 - behind,
        "loss": F.cross_entropy(logits, labels, reduction="none"),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """The result of a classifier on a set of images."""

    images: int
    """Number of images that could be decoded. Only these count."""
    top1: float
    """Share of the images whose largest logit is the label's."""
    top5: float
    """Share of the images whose label is among the five largest logits."""
    loss: float
    """Mean cross-entropy in nats."""
    confusion: NDArray[np.int64]
    """int64 [n, 3]: label, prediction and number of images, for every pair that occurs. A full matrix of
    21,841 classes would have 477 million entries."""


def summarise(labels: NDArray[np.int64], judged: dict[str, NDArray[Any]], classes: int) -> Classification:
    """Combine the results of `judge` for all images of a set, given as arrays [images]."""
    pairs, images = np.unique(labels * classes + judged["prediction"], return_counts=True)
    confusion = np.stack([pairs // classes, pairs % classes, images], axis=1).astype(np.int64)
    count = len(labels)
    if not count:
        return Classification(
            images=0, top1=float("nan"), top5=float("nan"), loss=float("nan"), confusion=confusion
        )
    rank = np.asarray(judged["rank"], np.int64)
    return Classification(
        images=count,
        top1=np.count_nonzero(rank < 1) / count,
        top5=np.count_nonzero(rank < 5) / count,
        loss=float(np.asarray(judged["loss"], np.float64).mean()),
        confusion=confusion,
    )
