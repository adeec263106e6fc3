"""What a model predicts of a patch: its visual token (BEiT), its pixels or its mean colour (ablations).

Letters in shapes: B images, N patches of an image, S of them asked for, O numbers that the head gives for a
patch, P pixels along its side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from beit.config import ViewConfig
from beit.tokenizer.protocol import ImageTokenizer
from beit.vit.backbone import CHANNELS, cut, take_tokens

IGNORED = -100  # torch's number for a position without a target
COLOUR_LEVELS = 8  # of a channel: 3 bits


class Target(ABC):
    """What the truth about a patch is, how far a prediction is from it, and which figures of the data give
    that a meaning.

    It gathers these figures since the run began; they are kept in checkpoints by `state` and `load_state`.
    """

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the batch that `truth` reads besides "patch_view"."""

    outputs: int
    """O, size of the head's output."""

    @abstractmethod
    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """What is to be predicted.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3] and `columns`.
            pixels: The same views normalised, float [B, 3, H, W].
            positions: int64 [B, S], the patches asked for.

        Returns:
            int64 [B, S] for classes, float [B, S, O] for a regression.
        """

    @abstractmethod
    def sums(self, outputs: Tensor, truth: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """Sums over the patches asked for: "loss", which carries the gradient, and what `metrics` needs.

        Args:
            outputs: The head's, float32 [B, S, O].
            truth: From `truth`.
            asked: Bool [B, S], False for the slots that only fill up the batch.
        """

    @abstractmethod
    def metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """What is reported, from sums over all workers since the last report and the number of patches in
        them. NaN: not defined.
        """

    @abstractmethod
    def guess(self, outputs: Tensor) -> Tensor:
        """The prediction, in the form of `truth`."""

    @abstractmethod
    def paint(self, values: Tensor) -> Tensor | None:
        """Truth or prediction of all patches of square images as pictures, uint8 [B, h, w, 3]. None: it
        cannot be painted.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was gathered, as JSON types."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class Classes(Target):
    """One of O classes a patch, by cross-entropy in nats."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self._counts: NDArray[np.int64] = np.zeros(outputs, np.int64)

    def sums(self, outputs: Tensor, truth: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """Besides "loss": "correct", int64: patches whose class has the largest logit; "counts", int64 [O]:
        how often each occurred.
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
        """Loss in nats and accuracy, and the two baselines that give them a meaning.

        "unigram" is the loss of a model that knows only how often each class occurs, "majority" the accuracy
        of one that always says the commonest, both over all patches asked for since the run began;
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
        """Go on counting."""
        self._counts = np.asarray(state["counts"], np.int64)


class VisualTokens(Classes):
    """The visual token of a patch: BEiT's target."""

    kind = "tokens"
    columns = ("tokens",)

    def __init__(self, vocab_size: int, tokenizer: ImageTokenizer | None = None) -> None:
        """`tokenizer` paints tokens; training needs none."""
        super().__init__(vocab_size)
        self._tokenizer = tokenizer

    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """The column "tokens", int [B, N], at `positions`."""
        return batch["tokens"].flatten(1).gather(1, positions).long()

    def paint(self, values: Tensor) -> Tensor | None:
        """What the tokenizer decodes the tokens to."""
        if self._tokenizer is None or not self._tokenizer.has_decoder:
            return None
        return self._tokenizer.decode(values).permute(0, 2, 3, 1)


class MeanColour(Classes):
    """The mean colour of a patch at 3 bits a channel, one of 512: ViT's own attempt at masked patches (arXiv
    2010.11929, B.1.2).
    """

    kind = "colour"

    def __init__(self, patch_size: int) -> None:
        super().__init__(COLOUR_LEVELS**CHANNELS)
        self._patch_size = patch_size

    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """64 red + 8 green + blue, each of 0 .. 7, of the mean over the patch's pixels. In whole numbers: the
        same on every device.
        """
        images, size = batch["patch_view"], self._patch_size
        height, width = images.shape[1] // size, images.shape[2] // size
        squares = images.reshape(-1, height, size, width, size, CHANNELS)
        levels = squares.sum((2, 4), dtype=torch.int32) * COLOUR_LEVELS // (256 * size**2)
        red, green, blue = levels.flatten(1, 2).unbind(-1)
        classes = (red * COLOUR_LEVELS + green) * COLOUR_LEVELS + blue
        return classes.gather(1, positions).long()

    def paint(self, values: Tensor) -> Tensor | None:
        """Every patch in the middle of its class's range of colours."""
        levels = torch.stack(
            [values // COLOUR_LEVELS**2, values // COLOUR_LEVELS % COLOUR_LEVELS, values % COLOUR_LEVELS], -1
        )
        grid = math.isqrt(values.shape[1])
        colours = (
            ((levels * 2 + 1) * (128 // COLOUR_LEVELS)).to(torch.uint8).reshape(-1, grid, grid, CHANNELS)
        )
        return colours.repeat_interleave(self._patch_size, 1).repeat_interleave(self._patch_size, 2)


class Pixels(Target):
    """The normalised pixels of a patch, by squared error: the paper's ablation without visual tokens (its
    Table 4).
    """

    kind = "pixels"

    def __init__(self, patch_size: int, view: ViewConfig) -> None:
        """`view` says how the pixels are normalised."""
        self.outputs = CHANNELS * patch_size**2
        self._patch_size, self._view = patch_size, view
        self._patches = 0.0
        # Of the channels' values and of their squares, summed over patches.
        self._means, self._squares = np.zeros(CHANNELS), np.zeros(CHANNELS)

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
        """Mean squared error of a normalised value, and what gives it a meaning.

        "variance" is the error of always saying the mean colour of all patches asked for since the run began;
        "explained" is the share of it that the model takes away.
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
        """Pixels put in place, not normalised any more."""
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
        """Go on adding up."""
        self._patches, self._means, self._squares = (
            state["patches"],
            np.asarray(state["means"]),
            np.asarray(state["squares"]),
        )
