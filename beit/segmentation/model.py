"""Segmentation model: a BEiT backbone with one of two heads.

upernet: as in the released code (microsoft/unilm, beit/semantic_segmentation). setr-pup: as in the paper
(arXiv 2106.08254, table 14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor

from beit.classification.model import initialise_for_finetuning
from beit.config import ModelConfig
from beit.errors import UserError
from beit.segmentation.config import Head
from beit.segmentation.heads.layers import initialise_head, resized
from beit.segmentation.heads.setr import CHANNELS, SetrPupHead
from beit.segmentation.heads.upernet import FcnHead, PyramidBackbone, UperHead
from beit.vit.backbone import Backbone
from beit.vit.model import VitModel

TAPS = (4 / 12, 6 / 12, 8 / 12, 12 / 12)
"""UPerNet reads the tokens after these shares of the blocks. The authors read blocks 3, 5, 7, 11 of 12 and 7,
11, 15, 23 of 24, counted from 0."""


def default_taps(head: Head, depth: int) -> tuple[int, ...]:
    """Return the blocks, from 0, whose tokens a head reads by default.

    For UPerNet the authors' four, scaled to the depth; for SETR-PUP the last.
    """
    return tuple(max(1, round(share * depth)) - 1 for share in (TAPS if head == "upernet" else TAPS[-1:]))


class Segmenter(VitModel):
    """Backbone without final norm, and a head that reads the patch tokens after some blocks as feature maps.

    B images, K classes, D width. Submodules have the names of the published checkpoints: `backbone`,
    `decode_head`, `auxiliary_head`.
    """

    kind: ClassVar[str] = "segmenter"

    def __init__(
        self,
        config: ModelConfig,
        classes: int,
        *,
        head: Head = "upernet",
        taps: Sequence[int] | None = None,
        channels: int | None = None,
        class_names: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the model.

        Args:
            config: Sizes and variant of the backbone; `image_size` is the crop's.
            classes: K.
            head: upernet has an auxiliary head for training.
            taps: Blocks, from 0, whose tokens the head reads: four for upernet, one for setr-pup. None:
                `default_taps`.
            channels: Width of the head. None: the authors', D for upernet and 256 for setr-pup.
            class_names: K names, in the order of the logits.
            generator: Draws the initial weights (see `initialise_for_finetuning` and `initialise_head`).
                None: they stay uninitialised, to be loaded.
        """
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class names for {classes} classes")
        super().__init__()
        self.classes = classes
        self.head = head
        self.taps = default_taps(head, config.depth) if taps is None else tuple(taps)
        self.class_names = None if class_names is None else tuple(class_names)
        if head not in get_args(Head):
            raise ValueError(f"head={head!r} is not one of {', '.join(get_args(Head))}")
        if len(self.taps) != len(default_taps(head, config.depth)) or not all(
            0 <= tap < config.depth for tap in self.taps
        ):
            raise ValueError(f"taps={self.taps} do not fit the head {head} on {config.depth} blocks")
        if head == "upernet" and config.grid < 2:
            raise UserError(
                f"model.image_size={config.image_size} has one patch, which has no half",
                f"set model.image_size={2 * config.patch_size}",
            )
        if head == "upernet":
            self.channels = channels or config.dim
            self.backbone: Backbone = PyramidBackbone(config)
            self.decode_head: UperHead | SetrPupHead = UperHead(config.dim, self.channels, classes)
            self.auxiliary_head: FcnHead | None = FcnHead(config.dim, classes)
        else:
            self.channels = channels or CHANNELS
            self.backbone = Backbone(config, with_norm=False)
            self.decode_head = SetrPupHead(config.dim, self.channels, classes, patch_size=config.patch_size)
            self.auxiliary_head = None
        self.config = self.backbone.config
        if generator is not None:
            initialise_head(self, generator)
            initialise_for_finetuning(self.backbone, generator)

    @property
    def head_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the head."""
        names = None if self.class_names is None else list(self.class_names)
        return {
            "classes": self.classes,
            "head": self.head,
            "taps": list(self.taps),
            "channels": self.channels,
            "class_names": names,
        }

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """Build the model that `config` and `head_config` describe, with uninitialised weights."""
        return cls(config, **head)

    def forward(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return logits [B, K, height, width].

        Args:
            pixels: Float [B, 3, height, width], normalised as in pretraining.
            generator: Decides which branches are skipped and which channels are dropped; needed in training
                mode.
        """
        return resized(self.decode_head(self.maps(pixels, generator=generator), generator), pixels.shape[2:])

    def training_logits(self, pixels: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return logits [B, K, height, width] of the head, and of the auxiliary head if there is one."""
        maps = self.maps(pixels, generator=generator)
        logits = resized(self.decode_head(maps, generator), pixels.shape[2:])
        if self.auxiliary_head is None:
            return logits, None
        return logits, resized(self.auxiliary_head(maps, generator), pixels.shape[2:])

    def maps(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return the heads' input.

        For upernet a pyramid of four maps [B, D, ., .], for setr-pup one map [B, D, rows, columns].
        """
        tokens = self.backbone.features(pixels, blocks=self.taps, norm=False, generator=generator)
        maps = [each[:, 1:].transpose(1, 2).reshape(len(pixels), -1, *self.backbone.grid) for each in tokens]
        return self.backbone.pyramid(maps) if isinstance(self.backbone, PyramidBackbone) else maps
