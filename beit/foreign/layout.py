"""Find out from a BEiT's tensors which kind of model they belong to, and its sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from beit.config import ModelConfig
from beit.errors import UserError
from beit.foreign.huggingface import Settings, taps_of
from beit.foreign.names import BACKBONE
from beit.vit.resolution import CLASS_ROWS

PUBLISHED_HEADS = {768: 12, 1024: 16}
"""Number of heads by width in the published models: each head has 64 channels."""

PUBLISHED_LAYER_SCALE = {12: 0.1, 24: 1e-5}
"""Initial values of LayerScale by number of blocks. They are only recorded: weights do not reveal them and do
not depend on them."""

LARGEST_GRID = 128

HEADS_OPTION = "--heads"

TABLE = "relative_position_bias_table"

Kind = Literal["mim", "classifier", "segmenter", "backbone"]

HEADS: dict[Kind, str] = {
    "segmenter": "decode_head.conv_seg.weight",
    "classifier": "head.weight",
    "mim": "lm_head.weight",
}
"""A model with this tensor is of this kind; the first match counts."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """Kind and config of a model, found out from its tensors."""

    kind: Kind
    model: ModelConfig
    head: dict[str, Any]
    """The `head_config` of its class."""
    heads_by: str
    """How the number of attention heads is known."""


def kind_of(tensors: Mapping[str, Tensor]) -> Kind:
    """Return the kind of a model with these tensors, under our names; "backbone" if no head is recognised."""
    return next((kind for kind, name in HEADS.items() if name in tensors), "backbone")


def describe(tensors: Mapping[str, Tensor], kind: Kind, settings: Settings | None = None) -> Described:
    """Find out sizes and variant from tensors.

    Args:
        tensors: Under our names.
        kind: Kind of the model.
        settings: Settings that tensors do not reveal. Missing ones are those of the published models.

    Raises:
        UserError: If a tensor that determines a size is missing or has an impossible shape, or if the
            settings contradict the tensors.
    """
    settings = settings or Settings()
    body = {name.removeprefix(BACKBONE): tensor for name, tensor in tensors.items()}
    embed = _shape(body, "patch_embed.proj.weight", 4)
    dim, patch = embed[0], embed[-1]
    depth = 1 + max(
        (int(found[1]) for name in body if (found := re.match(r"blocks\.(\d+)\.", name))), default=-1
    )
    if not 0 < depth <= len(body):
        raise UserError(
            f"the file has {len(body)} tensors for {depth} blocks", "give the weights of a whole model"
        )
    shared, own = f"rel_pos_bias.{TABLE}" in body, f"blocks.0.attn.{TABLE}" in body
    position: Literal["absolute", "relative", "relative-per-block"]
    columns = None
    if "pos_embed" in body:
        position = "absolute"
        tokens = _shape(body, "pos_embed", 3)[1]
        grid = math.isqrt(max(0, tokens - 1))
        if grid**2 + 1 != tokens:
            raise UserError(
                f"pos_embed has {tokens} positions, which is no square number of patches plus a class token",
                "square models can be read",
            )
    elif shared or own:
        position = "relative" if shared else "relative-per-block"
        rows, columns = _shape(body, f"rel_pos_bias.{TABLE}" if shared else f"blocks.0.attn.{TABLE}", 2)
        grid = (math.isqrt(max(0, rows - CLASS_ROWS)) + 1) // 2
        if (2 * grid - 1) ** 2 + CLASS_ROWS != rows:
            raise UserError(
                f"a table of relative biases has {rows} rows, which fits no square grid",
                "square models can be read",
            )
        if settings.heads not in (None, columns):
            raise UserError(
                (
                    f"{settings.heads_by} says {settings.heads} heads, and the tables of relative biases "
                    f"have {columns} columns, one for each"
                ),
                "leave out --heads" if settings.heads_by == HEADS_OPTION else f"correct {settings.heads_by}",
            )
    else:
        raise UserError(
            "the file has neither pos_embed nor a table of relative biases", "give the weights of a BEiT"
        )
    if not 0 < grid <= LARGEST_GRID:
        raise UserError(
            f"the positions are those of {grid} x {grid} patches", f"up to {LARGEST_GRID} a side can be read"
        )
    heads, heads_by = _heads(dim, columns, settings)
    scaled = "blocks.0.gamma_1" in body
    model = ModelConfig(
        image_size=grid * patch,
        patch_size=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=_shape(body, "blocks.0.mlp.fc1.weight", 2)[0] / dim,
        position=position,
        layer_scale=(settings.layer_scale or PUBLISHED_LAYER_SCALE.get(depth, 0.1)) if scaled else None,
    )
    return Described(kind=kind, model=model, head=_head(tensors, kind, settings, depth), heads_by=heads_by)


def _heads(dim: int, columns: int | None, settings: Settings) -> tuple[int, str]:
    """Return the number of heads, and how it is known."""
    if columns is not None:
        heads, by = columns, "by the tables of relative biases"
    elif settings.heads is not None:
        heads, by = settings.heads, f"by {settings.heads_by}"
    elif dim in PUBLISHED_HEADS:
        heads, by = PUBLISHED_HEADS[dim], f"as the published models of width {dim}"
    else:
        raise UserError(
            f"nothing in the file tells how many heads share the width {dim}",
            "give --heads N (published models have width / 64)",
        )
    if dim % heads:
        remedy = (
            "give the weights of a BEiT" if columns is not None else "give --heads N that divides the width"
        )
        raise UserError(f"{heads} heads, {by}, cannot share the width {dim} of the tensors", remedy)
    return heads, by


def _head(tensors: Mapping[str, Tensor], kind: Kind, settings: Settings, depth: int) -> dict[str, Any]:
    """Return the `head_config` of the model's class."""
    if kind == "backbone":
        return {"norm": "norm.weight" in tensors}
    outputs = tensors[HEADS[kind]].shape[0] if tensors[HEADS[kind]].ndim else 0
    names = settings.class_names
    if names is not None and len(names) != outputs:
        names = None
    if kind == "mim":
        return {"vocab_size": outputs}
    if kind == "classifier":
        return {
            "classes": outputs,
            "pooling": "mean" if "fc_norm.weight" in tensors else "cls",
            "class_names": names,
        }
    channels = _shape(tensors, HEADS[kind], 4)[1]
    return {
        "classes": outputs,
        "head": "upernet",
        "taps": taps_of(settings, depth),
        "channels": channels,
        "class_names": names,
    }


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> list[int]:
    if name not in tensors:
        raise UserError(f"{name} is missing", "give the weights of a whole model")
    shape = list(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise UserError(
            f"{name} has the shape {shape}", f"give the weights of a BEiT, where it has {axes} axes"
        )
    return shape
