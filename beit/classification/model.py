"""Image classification: a BEiT backbone with a linear head.

BEiT, arXiv 2106.08254, section 2.6; microsoft/unilm, beit/modeling_finetune.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from beit.config import ModelConfig
from beit.vit.backbone import INIT_STD, Backbone
from beit.vit.layers import NORM_EPS, Linear
from beit.vit.pooling import Pooling

FINETUNING_HEAD_SCALE = 1e-3
"""The authors' factor on a new head after pretrained blocks: its initial logits are nearly 0, and so are the
gradients that it sends to the blocks."""


class Classifier(Backbone):
    """Backbone, pooling and a linear layer to the classes.

    B images, K classes, D width. Pooling "mean": the mean of the patch tokens, then `fc_norm`; there is no
    `norm`. Pooling "cls": `norm`, then the class token.
    """

    kind: ClassVar[str] = "classifier"

    def __init__(
        self,
        config: ModelConfig,
        classes: int,
        *,
        pooling: Pooling = "mean",
        class_names: Sequence[str] | None = None,
        head_scale: float = FINETUNING_HEAD_SCALE,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the model.

        Args:
            config: Sizes and variant of the backbone.
            classes: K.
            pooling: How tokens become the vector that the head reads.
            class_names: K names, in the order of the logits.
            head_scale: Factor on the head's initial weights: the authors' for a head after pretrained blocks,
                1 to train from scratch.
            generator: Draws the initial weights (see `initialise_for_finetuning`). None: they stay
                uninitialised, to be loaded.
        """
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class names for {classes} classes")
        super().__init__(config, with_norm=pooling == "cls")
        self.pooling = pooling
        self.class_names = None if class_names is None else tuple(class_names)
        self.fc_norm = nn.LayerNorm(config.dim, eps=NORM_EPS) if pooling == "mean" else None
        self.head = Linear(config.dim, classes)
        if generator is not None:
            initialise_for_finetuning(self, generator)
            with torch.no_grad():
                self.head.weight.mul_(head_scale)

    @property
    def head_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the head."""
        names = None if self.class_names is None else list(self.class_names)
        return {"classes": self.head.out_features, "pooling": self.pooling, "class_names": names}

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """Build the model that `config` and `head_config` describe, with uninitialised weights."""
        return cls(config, **head)

    def forward(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return logits [B, K].

        Args:
            pixels: Float [B, 3, height, width], normalised as in pretraining.
            generator: Decides which branches are skipped. Needed in training mode if `model.drop_path` is
                above 0.
        """
        return self.head(self.pooled(pixels, generator=generator))  # type: ignore[no-any-return]

    def pooled(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the head's input, [B, D]; the arguments are those of `forward`."""
        if self.fc_norm is not None:
            (tokens,) = self.features(pixels, generator=generator)
            return self.fc_norm(tokens[:, 1:].mean(1))  # type: ignore[no-any-return]
        class_token = torch.zeros(len(pixels), 1, dtype=torch.int64, device=pixels.device)
        (tokens,) = self.features(pixels, rows=class_token, generator=generator)
        return tokens[:, 0]


@torch.no_grad()
def initialise_for_finetuning(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise all weights as the authors do for fine-tuning and for training from scratch.

    As in microsoft/unilm, beit/modeling_finetune.py. Weights of linear layers, the class token and positions:
    normal with standard deviation 0.02, truncated at 100 standard deviations, which is not at all
    (pretraining truncates at one). The layers that write into the residual stream of block l = 1 .. L are
    divided by sqrt(2 l). The convolution of the patch embedding: torch's default, uniform within 1 /
    sqrt(values of a patch), bias included. Biases and bias tables: 0. Gains of norms: 1. LayerScale: as
    configured.

    Args:
        model: A `Backbone`, or a model that contains one; linear layers of its head are initialised as well.
        generator: On the CPU, or on the model's device.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, Backbone):
            for parameter in (module.cls_token, module.pos_embed):
                if parameter is not None:
                    nn.init.trunc_normal_(parameter, std=INIT_STD, generator=generator)
            embed = module.patch_embed.proj
            assert embed.bias is not None
            bound = 1 / math.sqrt(embed.weight[0].numel())
            embed.weight.uniform_(-bound, bound, generator=generator)
            embed.bias.uniform_(-bound, bound, generator=generator)
    for module in model.modules():
        if isinstance(module, Backbone):
            for number, block in enumerate(module.layers, start=1):
                block.attn.proj.weight.div_(math.sqrt(2 * number))
                block.mlp.fc2.weight.div_(math.sqrt(2 * number))
