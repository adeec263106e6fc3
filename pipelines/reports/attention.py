"""The report's attention sheet: what chosen patches of a few images attend to in the last block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from beit.config import ViewConfig
from beit.probing.attention import KEPT_MASS, look
from beit.probing.attention_sheet import attention_sheet
from pipelines.reports.page import Picture

IMAGES = 3
POINTS = ((0.5, 0.5), (0.25, 0.75))
SIDE = 144
"""Side of a picture on the sheet, in pixels."""


def attention_picture(model: nn.Module, images: NDArray[np.uint8], view: ViewConfig) -> Picture:
    """Draw the sheet for the first three images. Each takes one forward pass on this machine's CPU, at the
    model's own size.

    Args:
        model: Any model with a backbone; it is put in evaluation mode.
        images: uint8 [n, P, P, 3], of the model's own size.
        view: Its mean and std normalise the pixels.
    """
    model.eval()
    shown = [look(model, image, POINTS, view) for image in images[:IMAGES]]
    legend = [
        ("query patch", "The view, nothing hidden; the red square is the patch whose attention is shown."),
        (
            "mean over heads",
            "Softmax weights of the last block, averaged over its heads, on a grey copy of the image. "
            "Below: the largest weight, and the class token's.",
        ),
        (
            "head 1, 2, …",
            "The weights of each head. Dark: none. Each map is scaled to its own largest weight, which is "
            "written below it, and compared with the weight that every token would have if all were equal: "
            "a map of about 1 x looks bright and says nothing.",
        ),
        (
            f"{KEPT_MASS:.0%} of the mean",
            "The smallest set of patches that together have this share of the mean; all others are "
            "covered. Below: their number, and what it would be if all weights were equal.",
        ),
        (
            "what to look for",
            "In the paper (figure 2), after 800 epochs of pretraining on ImageNet, patches of an object "
            "attend to that object, although no label named it; after a short training, maps may follow "
            "colour or distance alone. beit attention shows any image, point and size.",
        ),
    ]
    names = [f"image {number}" for number in range(1, len(shown) + 1)]
    return Picture(
        title="What patches attend to", image=attention_sheet(shown, names, side=SIDE), legend=legend
    )
