"""A target of one's own: the brightness of a patch, one of 16 levels."""

import math

import torch

from beit.pretraining.targets import Classes, Drawing, register_target

LEVELS = 16


@register_target
class Brightness(Classes):
    """The mean over a patch's values, one of 16 levels."""

    kind, noun = "brightness", "level"
    drawing = Drawing(truth=("true levels", "The mean brightness of every patch, one of 16 greys."))

    def __init__(self, patch_size):
        super().__init__(LEVELS)
        self.patch_size = patch_size

    @classmethod
    def from_setting(cls, setting):
        return cls(setting.model.patch_size)

    @classmethod
    def predicted(cls, setting):
        return f"the brightness, one of {LEVELS} levels,"

    @classmethod
    def warnings(cls, setting):
        return ["warning: colours are jittered"] if setting.view.jitter else []

    def truth(self, batch, pixels, positions):
        size = self.patch_size
        squares = batch["patch_view"].unflatten(2, (-1, size)).unflatten(1, (-1, size))
        means = squares.float().mean((2, 4, 5)).flatten(1)
        return (means * LEVELS / 256).long().gather(1, positions)

    def paint(self, values):
        grid = math.isqrt(values.shape[1])
        grey = (values * 256 // LEVELS + 8).to(torch.uint8).reshape(-1, grid, grid, 1)
        return grey.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(-1, -1, -1, 3)
