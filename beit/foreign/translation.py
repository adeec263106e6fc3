"""Translate a file's tensors to our names, and report what happened to each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from beit.errors import UserError
from beit.foreign.layout import Kind
from beit.foreign.names import BACKBONE, INDEX, PARTS, Spelling, from_hugging_face
from beit.foreign.report import KeyReport

WRAPPED = ("module.", "_orig_mod.")
"""Prefixes of all names in a model that was wrapped for several GPUs, or compiled."""

SOURCES = "unilm's or timm's file of weights, or a folder or file of Hugging Face's"

SPELLINGS: dict[Spelling, str] = {
    "unilm": "unilm's and timm's names",
    "hub": "the names of Hugging Face's files",
    "v5": "the names of Hugging Face's modules since version 5",
}

_TOKENS = "predicts visual tokens, which this model does not"
_DROPPED: dict[Kind, dict[str, str]] = {
    "mim": {"fc_norm.": "pools, which pretraining does not"},
    "classifier": {"lm_head.": _TOKENS, "mask_token": "nothing is hidden from a classifier"},
    "segmenter": {
        "lm_head.": _TOKENS,
        "mask_token": "nothing is hidden from a segmenter",
        "norm.": "a segmenter has no last norm",
        "fc_norm.": "pools, which a segmenter does not",
        "head.": "classifies whole images, which a segmenter does not",
    },
    "backbone": {
        "mask_token": "nothing is hidden from a model without a head",
        "fc_norm.": "pools, which a model without a head does not",
    },
}
"""Prefixes of the tensors that a kind of model does not use, and why."""


def unwrapped(name: str) -> str:
    """Remove all wrappers' prefixes from a name."""
    while prefix := next((prefix for prefix in WRAPPED if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def translate(found: Mapping[str, Tensor], spelling: Spelling) -> tuple[dict[str, Tensor], KeyReport]:
    """Return the tensors under our names, and a report of every name.

    Raises:
        UserError: If a name is unexpected, or if two names stand for one tensor.
    """
    report, tensors, unexpected = KeyReport(), {}, []
    parts: dict[str, dict[str, Tensor]] = {}
    segmenter = any(unwrapped(name).startswith("decode_head.") for name in found)
    for name, tensor in found.items():
        inner = unwrapped(name)
        if inner.endswith(INDEX):
            report.dropped[name] = "follows from the grid"
            continue
        ours = inner if spelling == "unilm" else from_hugging_face(inner, segmenter=segmenter)
        if ours is None:
            unexpected.append(name)
            continue
        if spelling == "unilm" and not segmenter:
            ours = ours.removeprefix(BACKBONE)
        whole, bracket, part = ours.partition("[")
        if whole in tensors or part.rstrip("]") in parts.get(whole, {}):
            raise UserError(
                f"{name} is a second tensor for {whole}", "give a model with one of them: both cannot be held"
            )
        if bracket:
            parts.setdefault(whole, {})[part.rstrip("]")] = tensor
        else:
            tensors[ours] = tensor
        if whole == name:
            report.same.append(name)
        else:
            report.renamed[name] = whole
    if unexpected:
        raise UserError(
            f"{listed(unexpected, 'is', 'are')} no part of a BEiT in {SPELLINGS[spelling]}", f"give {SOURCES}"
        )
    for whole, rows in parts.items():
        if missing := [part for part in PARTS if part not in rows]:
            raise UserError(
                f"{whole} has no {missing[0]}: of queries, keys and values one is missing",
                "give the weights of a whole model",
            )
        tensors[whole] = torch.cat([rows[part] for part in PARTS])
    return tensors, report


def drop(tensors: dict[str, Tensor], report: KeyReport, kind: Kind) -> None:
    """Remove the tensors that this kind of model does not use."""
    reasons = dict(_DROPPED[kind])
    if kind == "classifier" and "fc_norm.weight" in tensors:
        reasons["norm."] = "the mean of the patches goes through fc_norm instead"
    origins = {new: old for old, new in report.renamed.items()}
    for name in list(tensors):
        inner = name.removeprefix(BACKBONE)
        why = next((why for beginning, why in reasons.items() if inner.startswith(beginning)), None)
        if why is None:
            continue
        del tensors[name]
        origin = origins.get(name, name)
        report.renamed.pop(origin, None)
        if origin in report.same:
            report.same.remove(origin)
        report.dropped[origin] = why


def listed(names: list[str], one: str, many: str) -> str:
    """Join the first three names, how many more there are, and the verb that follows."""
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {one if len(names) == 1 else many}"
