"""The Vision Transformer of BEiT, in its two published variants.

Paper (arXiv 2106.08254, Tables 1 to 4): learned absolute positions. Released code (microsoft/unilm,
beit/modeling_pretrain.py and modeling_finetune.py): LayerScale, and relative position biases in place of
absolute positions. In pretraining all blocks share one table of biases; in fine-tuning each block has its own
copy. Modules and parameters have the names of the published checkpoints.

Letters in shapes:
    B images, N patches of an image, T = N + 1 tokens of an image (the class token first),
    S query tokens of an image (all T of them, or only those whose output is wanted),
    D width of a token, H heads, C = D / H width of a head, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.checks import check
from beit.config import ModelConfig
from beit.vit.attention import Attention, SharedBias, relative_position_index, take_biases
from beit.vit.layers import NORM_EPS, Mlp, PatchEmbed, take_tokens
from beit.vit.model import VitModel

INIT_STD = 0.02


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.mlp = Mlp(config.dim, round(config.dim * config.mlp_ratio))
        gain = config.layer_scale
        self.gamma_1 = None if gain is None else nn.Parameter(torch.full((config.dim,), gain))
        self.gamma_2 = None if gain is None else nn.Parameter(torch.full((config.dim,), gain))

    def forward(
        self,
        tokens: Tensor,
        bias: Tensor | None = None,
        paths: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Apply the block, and return its output for all tokens or only for some.

        Args:
            tokens: Float [B, T, D].
            bias: Relative position biases [H, T, T].
            paths: Factors [B, 2] of the attention and the MLP branch of every image (see `draw_paths`). None:
                all 1.
            rows: int64 [B, S], positions of the tokens whose output is wanted, none twice in an image. None:
                all, in order.

        Returns:
            Float [B, S, D], the output at `rows`.
        """
        normed = self.norm1(tokens)
        queries = None
        if rows is not None:
            queries, tokens = take_tokens(normed, rows), take_tokens(tokens, rows)
            bias = None if bias is None else take_biases(bias, rows)
        attention_path, mlp_path = (None, None) if paths is None else paths.unbind(1)
        tokens = _add_branch(tokens, self.attn(normed, bias, queries), self.gamma_1, attention_path)
        return _add_branch(tokens, self.mlp(self.norm2(tokens)), self.gamma_2, mlp_path)


def _add_branch(tokens: Tensor, branch: Tensor, gain: Tensor | None, path: Tensor | None) -> Tensor:
    """Return tokens [B, S, D] + gain [D] * path [B] * branch [B, S, D], in one pass over the branch."""
    factor = None if path is None else path[:, None, None]
    if gain is not None:
        factor = gain if factor is None else gain * factor
    return tokens + branch if factor is None else torch.addcmul(tokens, branch, factor)


def draw_paths(generator: torch.Generator, *, images: int, blocks: int, rate: float) -> Tensor:
    """Draw which branches each image skips (stochastic depth), on the generator's device.

    Block l of 0 .. L-1 skips a branch with probability rate * l / (L - 1). A branch that is kept is divided
    by the probability of keeping it, so its expectation does not change.

    Returns:
        Factors [B, L, 2], 0 where a branch is skipped. The image dimension comes first: on a CPU, two halves
        of a batch drawn one after the other skip the same branches as the whole batch.
    """
    device = generator.device
    keep = 1 - torch.linspace(0, rate, blocks, device=device)[:, None]
    return (torch.rand(images, blocks, 2, generator=generator, device=device) < keep).float() / keep


class Backbone(VitModel):
    """A Vision Transformer without a head: from pixels to the tokens after each block.

    Its weights are uninitialised until `initialise` or a checkpoint sets them.
    """

    kind: ClassVar[str] = "backbone"

    relative_position_index: Tensor
    """None with absolute positions, which do not use it."""

    def __init__(self, config: ModelConfig, *, with_mask_token: bool = False, with_norm: bool = True) -> None:
        """Build the modules, with uninitialised weights.

        Args:
            config: Sizes and variant.
            with_mask_token: Whether patches can be hidden, as in pretraining.
            with_norm: Whether a LayerNorm follows the last block. If not, `norm` is the identity.
        """
        super().__init__()
        check(config, "model.")
        self.config = config
        self.grid = (config.grid, config.grid)
        """Rows and columns of patches that the positions are for. `beit.vit.resolution.at_size` resamples
        them for another grid."""
        dim = config.dim
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if with_mask_token else None
        absolute = config.position == "absolute"
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, dim)) if absolute else None
        self.rel_pos_bias = SharedBias(config) if config.position == "relative" else None
        self.register_buffer(
            "relative_position_index",
            None if absolute else relative_position_index(*self.grid),
            persistent=False,
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS) if with_norm else nn.Identity()

    @property
    def layers(self) -> list[Block]:
        """The transformer blocks, from the pixels to the last."""
        return cast("list[Block]", list(self.blocks))

    @property
    def head_config(self) -> dict[str, Any]:
        """What `from_config` needs in addition to the sizes: for a backbone, whether it has a final norm."""
        return {"norm": isinstance(self.norm, nn.LayerNorm)}

    @classmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """Build the model that `config` and `head_config` describe, with uninitialised weights."""
        return cls(config, with_norm=head["norm"])

    def embed(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the tokens [B, T, D] of pixels [B, 3, height, width], as the first block takes them.

        Where mask [B, N] is True, the patch is replaced by the mask token, before positions are added.
        """
        size = self.config.patch_size
        height, width = size * self.grid[0], size * self.grid[1]
        if pixels.shape[2:] != (height, width):
            raise ValueError(
                f"images of {pixels.shape[2]} x {pixels.shape[3]} pixels given to a model whose positions "
                f"are for {height} x {width}: resize them, or make it a model of their size with "
                "beit.vit.resolution.at_size"
            )
        tokens = self.patch_embed(pixels)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError(
                    "this backbone was built without a mask token, so its patches cannot be hidden"
                )
            tokens = torch.where(mask[..., None], self.mask_token, tokens)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def features(
        self,
        pixels: Tensor,
        mask: Tensor | None = None,
        *,
        blocks: Sequence[int] = (-1,),
        rows: Tensor | None = None,
        norm: bool = True,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """Return the tokens [B, T, D] after each of `blocks`.

        Args:
            pixels: Float [B, 3, height, width], normalised.
            mask: Bool [B, N], True where the patch is hidden.
            blocks: Numbers of blocks from 0, or from the end if negative. Blocks after the last of them are
                not computed.
            rows: int64 [B, S], positions of the tokens wanted after the last of them, none twice in an image;
                that result is [B, S, D]. It equals the full result at `rows`, and the last block does no work
                for the other tokens. None: all tokens, in order.
            norm: Whether the final norm is applied to each result.
            generator: Decides which branches are skipped. Needed in training mode if `model.drop_path` is
                above 0.
        """
        depth = self.config.depth
        if not all(-depth <= number < depth for number in blocks):
            raise ValueError(f"blocks={list(blocks)} are not all among the {depth} blocks, counted from 0")
        wanted = [number % depth for number in blocks]
        last = max(wanted)
        tokens, paths = self.embed(pixels, mask), self._paths(len(pixels), generator)
        shared = (
            None if self.rel_pos_bias is None else self.biases(self.rel_pos_bias.relative_position_bias_table)
        )
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.layers[: last + 1]):
            own = block.attn.relative_position_bias_table
            bias = shared if own is None else self.biases(own)
            tokens = block(
                tokens, bias, None if paths is None else paths[:, number], rows if number == last else None
            )
            if number in wanted:
                outputs[number] = tokens
        return [self.norm(outputs[number]) if norm else outputs[number] for number in wanted]

    def biases(self, table: Tensor) -> Tensor:
        """Return the biases [H, T, T] of all pairs of tokens, from a table."""
        # F.embedding, not indexing: the gradient of an embedding is summed in a fixed order on every device.
        return F.embedding(self.relative_position_index, table).permute(2, 0, 1).contiguous()

    def _paths(self, images: int, generator: torch.Generator | None) -> Tensor | None:
        """Return the factors of the branches, [B, L, 2]; None where all are 1."""
        if not self.training or self.config.drop_path == 0:
            return None
        if generator is None:
            raise ValueError(
                f"model.drop_path={self.config.drop_path} in training mode needs a generator to draw from"
            )
        return draw_paths(generator, images=images, blocks=self.config.depth, rate=self.config.drop_path)


def backbone_of(model: nn.Module) -> Backbone:
    """Return the one `Backbone` that a model is or contains."""
    (backbone,) = (module for module in model.modules() if isinstance(module, Backbone))
    return backbone


@torch.no_grad()
def initialise(model: Backbone, generator: torch.Generator) -> None:
    """Initialise all weights as the authors do for pretraining (microsoft/unilm, beit/modeling_pretrain.py).

    Weights of linear layers and of the convolution, class token, mask token and positions: normal with
    standard deviation 0.02, truncated at one standard deviation. The layers that write into the residual
    stream of block l = 1 .. L are divided by sqrt(2 l). Biases and bias tables: 0. Gains of norms: 1.
    LayerScale: as configured.
    """
    normal: list[Tensor | None] = [model.cls_token, model.mask_token, model.pos_embed]
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            normal.append(module.weight)
            if module.bias is not None:
                module.bias.zero_()
    for parameter in normal:
        if parameter is not None:
            nn.init.trunc_normal_(parameter, std=INIT_STD, a=-INIT_STD, b=INIT_STD, generator=generator)
    for number, block in enumerate(model.layers, start=1):
        block.attn.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))
