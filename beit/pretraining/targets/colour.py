"""The target of ViT's own experiment with masked patches: mean colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from beit.pretraining.targets.base import Drawing, TargetSetting
from beit.pretraining.targets.classes import Classes
from beit.vit.layers import CHANNELS

COLOUR_LEVELS = 8  # of a channel: 3 bits


class MeanColour(Classes):
    """The mean colour of a patch with 3 bits per channel, one of 512: ViT's own experiment with masked
    patches (arXiv 2010.11929, B.1.2).
    """

    kind = "colour"
    noun = "colour"
    drawing = Drawing(
        truth=(
            "true colours",
            "The mean colour of every patch, at 3 bits a channel: all that the model is asked for.",
        )
    )

    def __init__(self, patch_size: int) -> None:
        super().__init__(COLOUR_LEVELS**CHANNELS)
        self._patch_size = patch_size

    @classmethod
    def from_setting(cls, setting: TargetSetting) -> Self:
        """For patches of the model's size."""
        return cls(setting.model.patch_size)

    @classmethod
    def predicted(cls, setting: TargetSetting) -> str:
        """One class a patch."""
        return f"the mean colour, one of {COLOUR_LEVELS**CHANNELS},"

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
