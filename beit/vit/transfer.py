"""Start one model from the weights of another: fine-tuning from pretraining, a higher resolution from a lower
one, new classes.

What the authors do (microsoft/unilm: beit/run_class_finetuning.py,
beit/semantic_segmentation/mmcv_custom/checkpoint.py), with an account.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.config import AbsoluteMode, ModelConfig
from beit.errors import UserError
from beit.vit.backbone import Backbone
from beit.vit.checkpoints import read_config, read_tensors
from beit.vit.resolution import resample

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
TABLE_OF_BLOCK = "blocks.{}.attn.relative_position_bias_table"
# Layers with an output for each class, in front of their parameters' names.
OF_CLASSES = ("head.", "decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# What two models must have in common for the weights of one to mean something in the other.
SAME = ("patch_size", "dim", "depth", "heads", "mlp_ratio")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What became of the tensors of both models, by name."""

    taken: list[str] = field(default_factory=list)
    """In the new model as they were, except `resampled`."""
    resampled: list[str] = field(default_factory=list)
    """Those of `taken` that were resampled for another grid."""
    dropped: dict[str, str] = field(default_factory=dict)
    """In the old model only, with the reason."""
    fresh: list[str] = field(default_factory=list)
    """In the new model only: its own first values stay."""
    unnamed: int | None = None
    """Classes of a head that was taken although one of the models does not name them: they may be others."""

    def lines(self) -> list[str]:
        """The account, for people."""
        said = [f"taken: {len(self.taken)} tensors"]
        if self.resampled:
            said[0] += f", {len(self.resampled)} of them positions resampled for another grid"
        said += [f"dropped: {name} ({why})" for name, why in self.dropped.items()]
        if self.fresh:
            said.append(f"fresh: {', '.join(_grouped(self.fresh))}")
        if self.unnamed is not None:
            said.append(f"head taken: both have {self.unnamed:,} classes, names unknown")
        return said


def _grouped(names: list[str]) -> list[str]:
    """The names, or one for all that begin alike where these are many."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return [
        said
        for top, group in groups.items()
        for said in (group if len(group) <= 4 else [f"{top} ({len(group)} tensors)"])
    ]


def finetuning_config(
    pretrained: ModelConfig, *, image_size: int | None = None, drop_path: float | None = None
) -> ModelConfig:
    """The backbone to fine-tune a pretrained one in: its own, but with a bias table for every block where it
    shares one.

    Args:
        pretrained: The backbone whose weights are to be taken.
        image_size: Another one. None: the same.
        drop_path: Likewise.
    """
    return dataclasses.replace(
        pretrained,
        position="relative-per-block" if pretrained.position == "relative" else pretrained.position,
        image_size=pretrained.image_size if image_size is None else image_size,
        drop_path=pretrained.drop_path if drop_path is None else drop_path,
    )


def per_block_tables(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of a model with the shared bias table, a copy of it for each of `depth` blocks instead."""
    copied = dict(tensors)
    table = copied.pop(SHARED_TABLE)
    return copied | {TABLE_OF_BLOCK.format(number): table.clone() for number in range(depth)}


def start_from_folder(model: nn.Module, folder: Path, *, absolute: AbsoluteMode = "bicubic") -> Transfer:
    """Start a model from a checkpoint folder of any kind; see `start_from`.

    Layers that tell classes apart are dropped if both models name their classes and not by the same list: as
    many are not the same ones. Where one of them names none they are taken, and the account says so.
    """
    saved = read_config(folder)
    tensors = read_tensors(folder)
    if saved.kind == "segmenter":
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    theirs, ours = saved.head.get("class_names"), getattr(model, "class_names", None)
    other = (
        [name for name in tensors if name.startswith(OF_CLASSES)]
        if theirs and ours and tuple(theirs) != tuple(ours)
        else []
    )
    report = start_from(
        model,
        {name: tensor for name, tensor in tensors.items() if name not in other},
        saved.model,
        absolute=absolute,
    )
    dropped = {**report.dropped, **dict.fromkeys(other, "of other classes")}
    heads = [name for name in report.taken if name.startswith(OF_CLASSES)]
    unnamed = len(tensors[heads[0]]) if heads and not (theirs and ours) else None
    return dataclasses.replace(report, dropped=dropped, unnamed=unnamed)


@torch.no_grad()
def start_from(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    absolute: AbsoluteMode = "bicubic",
) -> Transfer:
    """Copy into a model what it has in common with another.

    Positions are resampled to the model's grid, a shared bias table is cloned into every block if the model
    has one a block. What belongs to the old task is dropped: the mask token and its head, a final norm that
    the model does not have, a head of another shape.

    Args:
        model: A `Backbone`, or a model with one under the name `backbone`; changed in place.
        tensors: The other model's, by the names of a `Backbone`.
        config: The other model's backbone.
        absolute: How absolute positions are resampled.

    Raises:
        UserError: If the two backbones differ in more than resolution; nothing is changed then.
    """
    prefix = "" if isinstance(model, Backbone) else "backbone."
    backbone = model if isinstance(model, Backbone) else model.backbone
    assert isinstance(backbone, Backbone)
    _check_alike(backbone.config, config)
    if config.position == "relative" and backbone.config.position == "relative-per-block":
        tensors = per_block_tables(tensors, config.depth)
    expected = model.state_dict()
    report, state = Transfer(), {}
    for name, tensor in tensors.items():
        ours = name if name in expected else prefix + name
        if ours not in expected:
            report.dropped[name] = "not part of the new model"
            continue
        resampled = resample(name, tensor, (config.grid, config.grid), backbone.grid, absolute)
        if resampled.shape != expected[ours].shape:
            report.dropped[name] = (
                f"shape {list(tensor.shape)}, {list(expected[ours].shape)} in the new model"
            )
            continue
        if resampled is not tensor:
            report.resampled.append(name)
        report.taken.append(name)
        state[ours] = resampled
    report.fresh.extend(name for name in expected if name not in state)
    if lost := [name for name in report.fresh if name.startswith(f"{prefix}blocks.")]:
        raise ValueError(f"the weights lack {lost[0]}, which their config says they have")
    model.load_state_dict(state, strict=False)
    return report


def _check_alike(ours: ModelConfig, theirs: ModelConfig) -> None:
    differing = [
        f"model.{name}={getattr(theirs, name)} there, {getattr(ours, name)} here"
        for name in SAME
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if (ours.position == "absolute") != (theirs.position == "absolute") or (
        ours.position == "relative" and theirs.position != "relative"
    ):
        differing.append(f"model.position={theirs.position} there, {ours.position} here")
    if (ours.layer_scale is None) != (theirs.layer_scale is None):
        differing.append(f"model.layer_scale={theirs.layer_scale} there, {ours.layer_scale} here")
    if differing:
        raise UserError(
            f"the weights are of another backbone: {'; '.join(differing)}",
            "give both the same model, image_size apart",
        )
