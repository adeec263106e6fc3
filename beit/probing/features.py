"""Features of images: what a frozen backbone makes of them, one vector an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from beit.errors import UserError
from beit.vit.backbone import Backbone
from beit.vit.pooling import Pooling


def pooled_features(
    backbone: Backbone, pixels: Tensor, layers: Sequence[int], poolings: Sequence[Pooling]
) -> dict[tuple[int, Pooling], Tensor]:
    """One vector an image for each layer and pooling.

    Layers are what blocks give, without any norm behind them, as in the authors' linear probe
    (microsoft/unilm, beit/run_linear_eval.py).

    Args:
        backbone: In evaluation mode.
        pixels: Float [B, 3, height, width], normalised as in pretraining; nothing is hidden.
        layers: Numbers of blocks from 1.
        poolings: mean: of the patch tokens, the class token left out. cls: the class token.

    Returns:
        Float32 [B, D] by layer and pooling.
    """
    found = backbone.features(pixels, blocks=[layer - 1 for layer in layers], norm=False)
    pooled: dict[tuple[int, Pooling], Tensor] = {}
    for layer, tokens in zip(layers, found, strict=True):
        for pooling in poolings:
            pooled[layer, pooling] = (
                tokens[:, 1:].mean(1, dtype=torch.float32) if pooling == "mean" else tokens[:, 0]
            ).float()
    return pooled


def middle_layer(depth: int) -> int:
    """The layer to take for a pretrained model where nobody has probed it: the paper's best, the 9th of 12
    and the 14th of 24 (App. D).
    """
    return max(1, round(depth * (9 / 12 if depth <= 12 else 14 / 24)))


def check_layers(layers: Sequence[int], depth: int, *, option: str = "--layers") -> tuple[int, ...]:
    """Layers from 1 that the user asked for, in ascending order and each once; negative ones count from the
    end.

    Raises:
        UserError: For a layer that the model does not have.
    """
    for layer in layers:
        if layer == 0 or abs(layer) > depth:
            raise UserError(
                f"{option} {layer}: the model has the layers 1 to {depth}",
                f"give numbers from 1 to {depth}, or -1 for the last",
            )
    return tuple(sorted({layer if layer > 0 else depth + 1 + layer for layer in layers}))
