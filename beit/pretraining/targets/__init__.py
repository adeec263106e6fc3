"""Targets, which a model predicts for a patch: its visual token (BEiT), its pixels or its mean colour
(ablations), or a target of your own.

Letters in shapes: B images, N patches of an image, S of them asked for, O numbers that the head gives for a
patch, P pixels along its side.

A target of your own is a subclass of `Target`, or of `Classes` if it is one of O classes. In a program of
your own:

    @register_target
    class Brightness(Classes):
        kind, noun = "brightness", "level"

        @classmethod
        def from_setting(cls, setting): return cls(16, setting.model.patch_size)

        @classmethod
        def predicted(cls, setting): return "the brightness, one of 16 levels,"

        def truth(self, batch, pixels, positions): ...

    pretrain(override(quickstart(), {"target.kind": "brightness"}))
"""

from beit.pretraining.targets.base import Drawing, Target, TargetSetting
from beit.pretraining.targets.classes import Classes
from beit.pretraining.targets.colour import MeanColour
from beit.pretraining.targets.pixels import Pixels
from beit.pretraining.targets.registry import TARGETS, find_target, register_target
from beit.pretraining.targets.tokens import VisualTokens

__all__ = [
    "TARGETS",
    "Classes",
    "Drawing",
    "MeanColour",
    "Pixels",
    "Target",
    "TargetSetting",
    "VisualTokens",
    "find_target",
    "register_target",
]
