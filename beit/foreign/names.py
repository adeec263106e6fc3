"""Translate tensor names of a BEiT between our spelling and Hugging Face's two.

Ours are microsoft/unilm's names, which timm uses too. "hub" is the spelling of Hugging Face's files, which
version 5 still reads and writes; "v5" that of its modules in memory since version 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Spelling = Literal["unilm", "hub", "v5"]

BACKBONE, HF_BACKBONE = "backbone.", "beit."
"""Prefix of a backbone's names: in our segmenters (and mmsegmentation's), and in every task model of Hugging
Face's."""

PARTS = ("q", "k", "v")
QKV = "attn.qkv.weight"
"""This matrix is three in Hugging Face's models: queries, keys, values. Here its parts are named
`attn.qkv.weight[q]` and so on."""

INDEX = "relative_position_index"
"""A buffer that older code saves with every table of relative biases. The grid alone determines it."""


class Row(NamedTuple):
    """One tensor in three spellings. N stands for a number, * for the rest of a name."""

    ours: str
    hub: str
    v5: str


_BLOCK = (
    Row("norm1.*", "layernorm_before.*", "layernorm_before.*"),
    Row("norm2.*", "layernorm_after.*", "layernorm_after.*"),
    Row(f"{QKV}[q]", "attention.attention.query.weight", "attention.q_proj.weight"),
    Row(f"{QKV}[k]", "attention.attention.key.weight", "attention.k_proj.weight"),
    Row(f"{QKV}[v]", "attention.attention.value.weight", "attention.v_proj.weight"),
    Row("attn.q_bias", "attention.attention.query.bias", "attention.q_proj.bias"),
    Row("attn.v_bias", "attention.attention.value.bias", "attention.v_proj.bias"),
    Row(
        "attn.relative_position_bias_table",
        "attention.attention.relative_position_bias.relative_position_bias_table",
        "relative_position_bias.relative_position_bias_table",
    ),
    Row("attn.proj.*", "attention.output.dense.*", "attention.o_proj.*"),
    Row("mlp.fc1.*", "intermediate.dense.*", "mlp.fc1.*"),
    Row("mlp.fc2.*", "output.dense.*", "mlp.fc2.*"),
    Row("gamma_1", "lambda_1", "lambda_1"),
    Row("gamma_2", "lambda_2", "lambda_2"),
)

_BODY = (
    Row("cls_token", "embeddings.cls_token", "embeddings.cls_token"),
    Row("mask_token", "embeddings.mask_token", "embeddings.mask_token"),
    Row("pos_embed", "embeddings.position_embeddings", "embeddings.position_embeddings"),
    Row(
        "patch_embed.proj.*",
        "embeddings.patch_embeddings.projection.*",
        "embeddings.patch_embeddings.projection.*",
    ),
    Row(
        "rel_pos_bias.relative_position_bias_table",
        "encoder.relative_position_bias.relative_position_bias_table",
        "shared_position_bias.relative_position_bias_table",
    ),
    *(Row(f"blocks.N.{ours}", f"encoder.layer.N.{hub}", f"layers.N.{v5}") for ours, hub, v5 in _BLOCK),
    Row("norm.*", "layernorm.*", "layernorm.*"),
    Row("fc_norm.*", "pooler.layernorm.*", "pooler.layernorm.*"),
)
"""Tensors that belong to the backbone in both projects."""

_NECK = (
    Row("fpn1.0.*", "fpn1.0.*", "fpn.fpn1.conv_transpose1.*"),
    Row("fpn1.1.*", "fpn1.1.*", "fpn.fpn1.normalization.*"),
    Row("fpn1.3.*", "fpn1.3.*", "fpn.fpn1.conv_transpose2.*"),
    Row("fpn2.0.*", "fpn2.0.*", "fpn.fpn2.*"),
)
"""Tensors that belong to the backbone in ours, and to the task model in Hugging Face's."""


def _conv_norm(ours: str, v5: str | None = None) -> tuple[Row, Row]:
    """Return the rows of a convolution and its norm, which only "v5" names differently."""
    v5 = v5 or ours
    return (
        Row(f"{ours}.conv.*", f"{ours}.conv.*", f"{v5}.convolution.*"),
        Row(f"{ours}.bn.*", f"{ours}.bn.*", f"{v5}.normalization.*"),
    )


_HEADS = (
    Row("lm_head.*", "lm_head.*", "lm_head.*"),
    Row("head.*", "classifier.*", "classifier.*"),
    Row("decode_head.conv_seg.*", "decode_head.classifier.*", "decode_head.classifier.*"),
    *_conv_norm("decode_head.psp_modules.N.1", "decode_head.psp_modules.blocks.N.conv"),
    *_conv_norm("decode_head.bottleneck", "decode_head.psp_bottleneck"),
    *_conv_norm("decode_head.lateral_convs.N"),
    *_conv_norm("decode_head.fpn_convs.N"),
    *_conv_norm("decode_head.fpn_bottleneck"),
    *_conv_norm("auxiliary_head.convs.N"),
    Row("auxiliary_head.conv_seg.*", "auxiliary_head.classifier.*", "auxiliary_head.classifier.*"),
)
"""Tensors outside of the backbone in both projects."""


def from_hugging_face(name: str, *, segmenter: bool) -> str | None:
    """Return our name for a tensor in either of Hugging Face's spellings; None if no BEiT has it."""
    inner = name.removeprefix(HF_BACKBONE)
    for spelling in ("hub", "v5"):
        if (ours := _translate(inner, _BODY, spelling, "ours")) is not None:
            return BACKBONE + ours if segmenter else ours
        if inner == name and (ours := _translate(name, _NECK, spelling, "ours")) is not None:
            return BACKBONE + ours
        if inner == name and (ours := _translate(name, _HEADS, spelling, "ours")) is not None:
            return ours
    return None


def to_hub(name: str, *, kind: str) -> str:
    """Return the name in Hugging Face's files for one of our tensors, or a part `attn.qkv.weight[q]` of one.

    Args:
        name: In a model of ours.
        kind: Kind of that model. The final norm belongs to the backbone in a classifier, and to the head in
            pretraining.
    """
    inner = name.removeprefix(BACKBONE)
    if (theirs := _translate(inner, _BODY, "ours", "hub")) is not None:
        return theirs if kind == "mim" and inner.startswith("norm.") else HF_BACKBONE + theirs
    theirs = _translate(inner, _NECK, "ours", "hub") or _translate(name, _HEADS, "ours", "hub")
    if theirs is None:
        raise ValueError(f"Hugging Face has no name for {name}")
    return theirs


def spelling_of(names: Iterable[str]) -> Spelling | None:
    """Return which project's names these are; None if they are not those of a BEiT."""
    inner = {name.removeprefix(BACKBONE).removeprefix(HF_BACKBONE) for name in names}
    if "patch_embed.proj.weight" in inner:
        return "unilm"
    if "embeddings.patch_embeddings.projection.weight" not in inner:
        return None
    return "hub" if any(name.startswith("encoder.layer.") for name in inner) else "v5"


def _translate(name: str, rows: tuple[Row, ...], source: str, target: str) -> str | None:
    for row in rows:
        if found := re.fullmatch(_pattern(getattr(row, source)), name):
            return _filled(getattr(row, target), iter(found.groups()))
    return None


def _filled(template: str, values: Iterator[str]) -> str:
    """Fill a row's template with a value for every N and *."""
    return re.sub(r"\bN\b|\*", lambda _: next(values), template)


def _pattern(template: str) -> str:
    """Convert a row's template to a regular expression with a group for every N and *."""
    return re.sub(r"\bN\b", r"(\\d+)", re.escape(template)).replace(r"\*", "(.+)")
