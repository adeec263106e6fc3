"""The target of the paper's ablation without visual tokens (its Table 4): pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.config import ViewConfig
from beit.objectives.metric_chart import MetricChart
from beit.pretraining.targets.base import Target, TargetSetting
from beit.vit.layers import CHANNELS, cut, take_tokens


class Pixels(Target):
    """The normalised pixels of a patch, by squared error: the paper's ablation without visual tokens (its
    Table 4).
    """

    kind = "pixels"
    noun = "pixel"
    progress = (
        ("loss {:.3f} (mean colour {:.3f})", "train/loss train/variance"),
        ("explained {:.1%}", "train/explained"),
    )

    def __init__(self, patch_size: int, view: ViewConfig) -> None:
        """`view` says how the pixels are normalised."""
        self.outputs = CHANNELS * patch_size**2
        self._patch_size, self._view = patch_size, view
        self._patches = 0.0
        # Of the channels' values and of their squares, summed over patches.
        self._means, self._squares = np.zeros(CHANNELS), np.zeros(CHANNELS)

    @classmethod
    def from_setting(cls, setting: TargetSetting) -> Self:
        """For patches of the model's size, normalised as its input is."""
        return cls(setting.model.patch_size, setting.view)

    @classmethod
    def predicted(cls, setting: TargetSetting) -> str:
        """Three values a pixel."""
        size = setting.model.patch_size
        return f"the {size} x {size} x {CHANNELS} normalised pixels"

    @classmethod
    def conclusion(cls, metrics: Mapping[str, float]) -> str | None:
        """The squared error, compared with that of always predicting the mean colour."""
        loss, variance = metrics.get("train/loss"), metrics.get("train/variance")
        if loss is None or variance is None:
            return super().conclusion(metrics)
        better = "below" if loss < variance else "above"
        return (
            f"final squared error {loss:.3f}; always the mean colour {variance:.3f}: "
            f"{abs(1 - loss / variance):.1%} {better} it"
        )

    @classmethod
    def key_figures(cls, metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
        """The squared error with its baseline, and the share of the variance that is explained."""
        loss, variance = metrics.get("train/loss"), metrics.get("train/variance")
        figures = []
        if loss is not None:
            note = "" if variance is None else f"; always the mean colour: {variance:.3f}"
            figures.append(("loss", f"{loss:.3f}", f"mean squared error{note}"))
        if (explained := metrics.get("train/explained")) is not None:
            note = "of the pixels' variance about their mean colour"
            figures.append(("explained", f"{explained:.1%}", note))
        return figures

    @classmethod
    def charts(cls) -> tuple[MetricChart, ...]:
        """Squared errors with their baselines, and the share of the variance that is explained."""
        return (
            MetricChart(
                title="Mean squared error",
                curves=(("train/loss", "loss"),),
                baselines=(("train/variance", "always the mean colour"),),
                from_zero=True,
            ),
            MetricChart(
                title="Loss on fixed samples and masks",
                curves=(("eval/loss", "loss"),),
                baselines=(("eval/variance", "their mean colour"),),
                from_zero=True,
            ),
            MetricChart(
                title="Explained variance",
                curves=(("train/explained", "explained"), ("eval/explained", "of fixed samples")),
                percent=True,
            ),
        )

    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """Channel by channel, then row by row: the order in which the patch embedding reads a patch."""
        return take_tokens(cut(pixels, self._patch_size), positions)

    def sums(self, outputs: Tensor, truth: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """The mean squared error of a patch is its "loss"; "means" and "squares", [3], are those of a patch's
        values in each channel.
        """
        errors = (outputs - truth).square().mean(-1)
        channels = truth.reshape(*truth.shape[:2], CHANNELS, -1)
        counted = asked[..., None]
        return {
            "loss": torch.where(asked, errors, 0).sum(),
            "means": torch.where(counted, channels.mean(-1), 0).sum((0, 1)),
            "squares": torch.where(counted, channels.square().mean(-1), 0).sum((0, 1)),
        }

    def metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Mean squared error of a normalised value, with its baseline.

        "variance" is the error of always predicting the mean colour of all patches asked for since the run
        began; "explained" is the share of it that the model removes.
        """
        self._patches += weight
        self._means = self._means + np.asarray(sums["means"], np.float64)
        self._squares = self._squares + np.asarray(sums["squares"], np.float64)
        loss = float(sums["loss"]) / weight if weight else math.nan
        seen = max(1.0, self._patches)
        variance = (
            float((self._squares / seen - (self._means / seen) ** 2).mean()) if self._patches else math.nan
        )
        return {
            "loss": loss,
            "variance": variance,
            "explained": 1 - loss / variance if variance else math.nan,
        }

    def guess(self, outputs: Tensor) -> Tensor:
        """The head's output as it is."""
        return outputs

    def paint(self, values: Tensor) -> Tensor | None:
        """The pixels as an image, no longer normalised."""
        size, grid = self._patch_size, math.isqrt(values.shape[1])
        squares = values.reshape(-1, grid, grid, CHANNELS, size, size)
        images = squares.permute(0, 1, 4, 2, 5, 3).reshape(-1, grid * size, grid * size, CHANNELS)
        mean, std = (
            torch.tensor(numbers, device=values.device) for numbers in (self._view.mean, self._view.std)
        )
        painted: Tensor = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return painted

    def state(self) -> dict[str, Any]:
        """How many patches were asked for, and sums of their values."""
        return {"patches": self._patches, "means": self._means.tolist(), "squares": self._squares.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._patches, self._means, self._squares = (
            state["patches"],
            np.asarray(state["means"]),
            np.asarray(state["squares"]),
        )
