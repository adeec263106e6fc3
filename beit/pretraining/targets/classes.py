"""A target with classes: cross-entropy, accuracy, and how often each class occurs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from beit.objectives.metric_chart import MetricChart
from beit.pretraining.targets.base import Target

IGNORED = -100  # torch's number for a position without a target


class Classes(Target):
    """One of O classes for each patch, trained with cross-entropy in nats.

    Two baselines show what its loss and accuracy mean. "unigram" is the loss of a model that knows only how
    often each class occurs, "majority" the accuracy of one that always predicts the most frequent class.
    """

    judged = True
    progress = (
        ("loss {:.3f} (unigram {:.3f})", "train/loss train/unigram"),
        ("acc {:.1%} (majority {:.1%})", "train/accuracy train/majority"),
    )

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self._counts: NDArray[np.int64] = np.zeros(outputs, np.int64)

    @classmethod
    def conclusion(cls, metrics: Mapping[str, float]) -> str | None:
        """The loss against that of guessing by frequency."""
        loss, unigram = metrics.get("train/loss"), metrics.get("train/unigram")
        if loss is None or unigram is None:
            return super().conclusion(metrics)
        better = "better" if loss < unigram else "worse"
        return (
            f"final loss {loss:.3f}; unigram baseline {unigram:.3f}: {abs(unigram - loss):.3f} nats {better} "
            "than guessing by frequency"
        )

    @classmethod
    def key_figures(cls, metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
        """Loss and accuracy with their baselines."""
        loss, unigram = metrics.get("train/loss"), metrics.get("train/unigram")
        accuracy, majority = metrics.get("train/accuracy"), metrics.get("train/majority")
        figures = []
        if loss is not None:
            note = "nats"
            if unigram is not None and loss < unigram:
                note = f"{unigram - loss:+.3f} nats better than the unigram baseline, {unigram:.3f}"
            elif unigram is not None:
                note = f"not yet below the unigram baseline, {unigram:.3f}"
            figures.append(("loss", f"{loss:.3f}", note))
        if accuracy is not None:
            note = "in training" if majority is None else f"always the commonest {cls.noun}: {majority:.1%}"
            figures.append(("accuracy", f"{accuracy:.1%}", note))
        return figures

    @classmethod
    def baseline(cls, metrics: Mapping[str, float]) -> str:
        """What the unigram baseline is."""
        if metrics.get("train/unigram") is None:
            return ""
        return (
            f"The unigram baseline is the loss of a model that knows only how often each {cls.noun} occurs. "
            "The distance below it is what was learned."
        )

    @classmethod
    def charts(cls) -> tuple[MetricChart, ...]:
        """Loss and accuracy with their baselines, in training and on fixed samples."""
        return (
            MetricChart(
                title="Loss (nats)",
                curves=(("train/loss", "loss"),),
                baselines=(("train/unigram", "unigram baseline"),),
            ),
            MetricChart(
                title="Accuracy",
                curves=(("train/accuracy", "accuracy"),),
                baselines=(("train/majority", f"always the commonest {cls.noun}"),),
                percent=True,
                from_zero=True,
            ),
            MetricChart(
                title="Loss on fixed samples and masks",
                curves=(("eval/loss", "loss"),),
                baselines=(("eval/unigram", "their unigram baseline"),),
            ),
            MetricChart(
                title="Accuracy on fixed samples and masks",
                curves=(("eval/accuracy", "accuracy"),),
                baselines=(("eval/majority", f"always their commonest {cls.noun}"),),
                percent=True,
                from_zero=True,
            ),
        )

    def sums(self, outputs: Tensor, truth: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """In addition to "loss": "correct", int64: patches whose class has the largest logit; "counts", int64
        [O]: how often each occurred.
        """
        loss = F.cross_entropy(
            outputs.flatten(0, 1),
            truth.masked_fill(~asked, IGNORED).flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        correct = (outputs.detach().argmax(-1) == truth) & asked
        counts = torch.zeros(self.outputs, dtype=torch.int64, device=truth.device)
        counts.scatter_add_(0, truth.flatten(), asked.flatten().long())
        return {"loss": loss, "correct": correct.sum(), "counts": counts}

    def metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Loss in nats, accuracy, and their baselines over all patches asked for since the run began;
        "perplexity" is exp(unigram).
        """
        self._counts = self._counts + np.asarray(sums["counts"]).astype(np.int64)
        share = self._counts[self._counts > 0] / max(1, self._counts.sum())
        unigram = float(-(share * np.log(share)).sum()) if share.size else math.nan
        return {
            "loss": float(sums["loss"]) / weight if weight else math.nan,
            "accuracy": float(sums["correct"]) / weight if weight else math.nan,
            "unigram": unigram,
            "majority": float(share.max()) if share.size else math.nan,
            "perplexity": math.exp(unigram),
        }

    def guess(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit, int64 [B, S]."""
        return outputs.argmax(-1)

    def state(self) -> dict[str, Any]:
        """How often each class was asked for."""
        return {"counts": self._counts.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the counts."""
        self._counts = np.asarray(state["counts"], np.int64)
