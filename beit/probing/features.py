"""Features of images: one vector per image from a frozen backbone."""

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
    """Return one vector per image for each layer and pooling.

    A layer is the output of a block, without a norm, as in the authors' linear probe (microsoft/unilm,
    beit/run_linear_eval.py).

    Args:
        backbone: In evaluation mode.
        pixels: Float [B, 3, height, width], normalised as in pretraining; nothing is hidden.
        layers: Numbers of blocks from 1.
        poolings: mean: the mean of the patch tokens, without the class token. cls: the class token.

    Returns:
        Float32 [B, D] for each layer and pooling.
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
    """Return the layer whose features are likely the best of a pretrained model.

    The paper's best layers are the 9th of 12 and the 14th of 24 (App. D).
    """
    return max(1, round(depth * (9 / 12 if depth <= 12 else 14 / 24)))


def check_layers(layers: Sequence[int], depth: int, *, option: str = "--layers") -> tuple[int, ...]:
    """Return the layers that a user named, counted from 1, in ascending order and without duplicates.

    Negative numbers count from the end.

    Raises:
        UserError: If the model does not have a layer.
    """
    for layer in layers:
        if layer == 0 or abs(layer) > depth:
            raise UserError(
                f"{option} {layer}: the model has the layers 1 to {depth}",
                f"give numbers from 1 to {depth}, or -1 for the last",
            )
    return tuple(sorted({layer if layer > 0 else depth + 1 + layer for layer in layers}))
