"""The pretraining model: a backbone with a mask token and a head (BEiT, arXiv 2106.08254, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from beit.config import ModelConfig, TargetKind
from beit.objectives.base import derive
from beit.vit.backbone import Backbone, Linear, initialise

# Purposes that keep this module's generators apart: [seed, purpose, step, worker].
WEIGHTS = 1


class Beit(Backbone):
    """Backbone, mask token and the head that predicts visual tokens, or another target.

    B images, N patches of an image, M hidden patches of the batch, S slots of an image for its hidden
    patches, V visual tokens, D width.
    """

    kind: ClassVar[str] = "mim"

    def __init__(
        self, config: ModelConfig, vocab_size: int, *, target: TargetKind = "tokens", seed: int | None = 0
    ) -> None:
        """Build the model.

        Args:
            config: Sizes and variant of the backbone.
            vocab_size: V, visual tokens that the tokenizer knows; for another target, `Target.outputs`.
            target: What the head's outputs stand for.
            seed: Weights are drawn from it. None: they are left to be loaded.
        """
        super().__init__(config, with_mask_token=True)
        self.vocab_size = vocab_size
        self.target = target
        self.lm_head = Linear(config.dim, vocab_size)
        if seed is not None and not self.cls_token.is_meta:
            initialise(self, torch.Generator().manual_seed(derive(seed, WEIGHTS, 0, 0)))

    @property
    def head_config(self) -> dict[str, Any]:
        """What a checkpoint's `config.json` says about the head."""
        return {"vocab_size": self.vocab_size, "target": self.target}

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """The model that `config` and `head_config` describe, its weights left to be loaded."""
        return cls(config, **head, seed=None)

    def forward(self, pixels: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Predict the visual token behind every hidden patch.

        Args:
            pixels: Float [B, 3, H, W], from `normalise`.
            mask: Bool [B, N], True where the patch is hidden.
            generator: Draws the branches to skip; needed in training mode if `model.drop_path` is above 0.

        Returns:
            Logits [M, V], ordered by image, then by row and column.
        """
        positions, hidden = hidden_slots(mask)
        return self.predict(pixels, mask, positions, generator=generator)[hidden]

    def predict(
        self, pixels: Tensor, mask: Tensor, positions: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits [B, S, V] for the patches at int64 positions [B, S]; the other arguments are those of
        `forward`.

        Only these positions ask in the last block and pass its MLP, the final norm and the head: nothing
        reads the others. This is exact, and saves a twelfth of the arithmetic of ViT-B at the paper's mask
        ratio.
        """
        rows = positions + 1  # behind the class token
        (tokens,) = self.features(pixels, mask, rows=rows, generator=generator)
        return self.lm_head(tokens)  # type: ignore[no-any-return]


def hidden_slots(mask: Tensor, slots: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the hidden patches, the same number of slots for every image.

    Args:
        mask: Bool [B, N], True where the patch is hidden.
        slots: S, at least the largest count of hidden patches in an image. None: that count, for which a GPU
            is waited for.

    Returns:
        Positions int64 [B, S] in row-major order, visible patches in the slots left over, and bool [B, S],
        False for those.
    """
    if slots is None:
        slots = max(1, int(mask.sum(1).max()))
    positions = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :slots]
    return positions, mask.gather(1, positions)
