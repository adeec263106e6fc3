"""The pretraining model: a backbone with a mask token and a head (BEiT, arXiv 2106.08254, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from beit.config import ModelConfig
from beit.objectives.base import derive
from beit.vit.backbone import Backbone, initialise
from beit.vit.layers import Linear

# [seed, purpose, step, worker]: the purpose keeps this module's generator apart from others.
WEIGHTS = 1


class Beit(Backbone):
    """Backbone with a mask token, and a head that predicts visual tokens or another target.

    B images, N patches of an image, M hidden patches of the batch, S slots of an image for its hidden
    patches, V visual tokens, D width.
    """

    kind: ClassVar[str] = "mim"

    def __init__(
        self, config: ModelConfig, vocab_size: int, *, target: str = "tokens", seed: int | None = 0
    ) -> None:
        """Build the model.

        Args:
            config: Sizes and variant of the backbone.
            vocab_size: V, the tokenizer's number of visual tokens; for another target, `Target.outputs`.
            target: What the head's outputs are.
            seed: Seed of the initial weights. None: they stay uninitialised, to be loaded.
        """
        super().__init__(config, with_mask_token=True)
        self.vocab_size = vocab_size
        self.target = target
        self.lm_head = Linear(config.dim, vocab_size)
        if seed is not None and not self.cls_token.is_meta:
            initialise(self, torch.Generator().manual_seed(derive(seed, WEIGHTS, 0, 0)))

    @property
    def head_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the head."""
        return {"vocab_size": self.vocab_size, "target": self.target}

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """Build the model that `config` and `head_config` describe, with uninitialised weights."""
        return cls(config, **head, seed=None)

    def forward(self, pixels: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Predict the visual token behind every hidden patch.

        Args:
            pixels: Float [B, 3, H, W], from `normalise`.
            mask: Bool [B, N], True where the patch is hidden.
            generator: Decides which branches are skipped. Needed in training mode if `model.drop_path` is
                above 0.

        Returns:
            Logits [M, V], ordered by image, then by row and column.
        """
        positions, hidden = hidden_slots(mask)
        return self.predict(pixels, mask, positions, generator=generator)[hidden]

    def predict(
        self, pixels: Tensor, mask: Tensor, positions: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return logits [B, S, V] for the patches at int64 positions [B, S].

        The other arguments are those of `forward`. Only these patches are queries of the last block, and only
        they pass its MLP, the final norm and the head: no other output is used. The result is the same, and
        at the paper's mask ratio this saves a twelfth of ViT-B's arithmetic.
        """
        rows = positions + 1  # The class token comes first.
        (tokens,) = self.features(pixels, mask, rows=rows, generator=generator)
        return self.lm_head(tokens)  # type: ignore[no-any-return]


def hidden_slots(mask: Tensor, slots: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions of the hidden patches, padded to the same number of slots for every image.

    Args:
        mask: Bool [B, N], True where the patch is hidden.
        slots: S, at least the largest number of hidden patches in an image. None: that number; reading it
            from a GPU waits for the GPU.

    Returns:
        Positions, int64 [B, S], in row-major order; slots left over hold visible patches. And bool [B, S],
        False in slots left over.
    """
    if slots is None:
        slots = max(1, int(mask.sum(1).max()))
    positions = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :slots]
    return positions, mask.gather(1, positions)
