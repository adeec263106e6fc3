"""Start a model from the weights of another one.

For fine-tuning after pretraining, for a higher resolution, or for new classes. As the authors do
(microsoft/unilm: beit/run_class_finetuning.py, beit/semantic_segmentation/mmcv_custom/checkpoint.py), with a
report of every tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from beit.config import AbsoluteMode, ModelConfig
from beit.errors import UserError
from beit.vit.backbone import Backbone, backbone_of
from beit.vit.checkpoints import read_config, read_tensors
from beit.vit.resolution import resample

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
TABLE_OF_BLOCK = "blocks.{}.attn.relative_position_bias_table"
# Prefixes of the parameters of layers with one output for each class.
CLASS_LAYERS = ("head.", "decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# Two backbones must agree in these fields: otherwise weights of one mean nothing in the other.
SAME = ("patch_size", "dim", "depth", "heads", "mlp_ratio")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What happened to each tensor of the old and of the new model, by name."""

    taken: list[str] = field(default_factory=list)
    """Copied into the new model, unchanged except for those in `resampled`."""
    resampled: list[str] = field(default_factory=list)
    """Those of `taken` that were resampled for another grid."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Only in the old model, with the reason."""
    fresh: list[str] = field(default_factory=list)
    """Only in the new model, which keeps its own initial values."""
    unnamed: int | None = None
    """Number of classes of a head that was taken although one of the two models has no class names: they may
    be different classes."""

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"taken: {len(self.taken)} tensors"]
        if self.resampled:
            lines[0] += f", {len(self.resampled)} of them positions resampled for another grid"
        lines += [f"dropped: {name} ({why})" for name, why in self.dropped.items()]
        if self.fresh:
            lines.append(f"fresh: {', '.join(_grouped(self.fresh))}")
        if self.unnamed is not None:
            lines.append(f"head taken: both have {self.unnamed:,} classes, names unknown")
        return lines


def _grouped(names: list[str]) -> list[str]:
    """Return the names, but one entry in place of more than four names with the same first part."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return [
        entry
        for top, group in groups.items()
        for entry in (group if len(group) <= 4 else [f"{top} ({len(group)} tensors)"])
    ]


def finetuning_config(
    pretrained: ModelConfig, *, image_size: int | None = None, drop_path: float | None = None
) -> ModelConfig:
    """Return the config for fine-tuning a pretrained backbone.

    It is the backbone's own config, except that each block gets its own bias table if all blocks share one.

    Args:
        pretrained: Config of the pretrained backbone.
        image_size: A new image size. None: the same.
        drop_path: A new rate. None: the same.
    """
    return dataclasses.replace(
        pretrained,
        position="relative-per-block" if pretrained.position == "relative" else pretrained.position,
        image_size=pretrained.image_size if image_size is None else image_size,
        drop_path=pretrained.drop_path if drop_path is None else drop_path,
    )


def per_block_tables(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Replace the bias table that all blocks share by one copy for each of `depth` blocks."""
    copied = dict(tensors)
    table = copied.pop(SHARED_TABLE)
    return copied | {TABLE_OF_BLOCK.format(number): table.clone() for number in range(depth)}


def start_from_folder(
    model: nn.Module,
    folder: Path,
    *,
    absolute: AbsoluteMode = "bicubic",
    drop: Mapping[str, str] = MappingProxyType({}),
) -> Transfer:
    """Start a model from a checkpoint folder of any kind, as `start_from` does.

    `drop` names tensors by their beginnings that are not taken, with the reason.

    Layers with one output per class are dropped if both models name their classes and the names differ: the
    same number of classes does not make them the same classes. If one of the models has no class names, those
    layers are taken and the report says so.
    """
    saved = read_config(folder)
    tensors = read_tensors(folder)
    if saved.kind == "segmenter":
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    theirs, ours = saved.head.get("class_names"), getattr(model, "class_names", None)
    if theirs and ours and tuple(theirs) != tuple(ours):
        drop = {**drop, **dict.fromkeys(CLASS_LAYERS, "of other classes")}
    left_out = {
        name: reason for name in tensors for beginning, reason in drop.items() if name.startswith(beginning)
    }
    report = start_from(
        model,
        {name: tensor for name, tensor in tensors.items() if name not in left_out},
        saved.model,
        absolute=absolute,
    )
    dropped = {**report.dropped, **left_out}
    heads = [name for name in report.taken if name.startswith(CLASS_LAYERS)]
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
    """Copy weights into a model, as far as it has the same tensors.

    Positions are resampled to the model's grid. A bias table that all blocks share is copied into every block
    if each block of the model has its own. Tensors that the model does not have are dropped: for
    classification the mask token and its head; a final norm; a head of another shape.

    Args:
        model: A `Backbone`, or a model with one as its attribute `backbone`; changed in place.
        tensors: The other model's, under the names of a `Backbone`.
        config: The other model's backbone.
        absolute: How absolute positions are resampled.

    Raises:
        UserError: If the two backbones differ in more than resolution; nothing is changed then.
    """
    prefix = "" if isinstance(model, Backbone) else "backbone."
    backbone = backbone_of(model)
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
    differing = [name for name in SAME if getattr(ours, name) != getattr(theirs, name)]
    if (ours.position == "absolute") != (theirs.position == "absolute") or (
        ours.position == "relative" and theirs.position != "relative"
    ):
        differing.append("position")
    if (ours.layer_scale is None) != (theirs.layer_scale is None):
        differing.append("layer_scale")
    if differing:
        values = [
            f"model.{name}={getattr(theirs, name)} there, {getattr(ours, name)} here" for name in differing
        ]
        options = [f"--model.{name.replace('_', '-')} {getattr(theirs, name)}" for name in differing]
        raise UserError(
            f"the weights are of another backbone: {'; '.join(values)}",
            f"set {' '.join(options)}, or take other weights",
        )
