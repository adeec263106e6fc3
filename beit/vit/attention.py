"""Self-attention with relative position biases, as in the released code (microsoft/unilm,
beit/modeling_finetune.py).

Letters in shapes: B images, T tokens of an image (the class token first), S query tokens of an image,
D width of a token, H heads, C = D / H width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.config import ModelConfig
from beit.vit.layers import Linear


def relative_position_index(rows: int, columns: int) -> Tensor:
    """Return the row of the bias table for every pair of tokens of a grid, int64 [T, T].

    Entry [i, j] is for query token i and key token j. Two patches use row
    (dy + rows - 1) * (2 columns - 1) + dx + columns - 1, where dy and dx are the row and column of the query
    patch minus those of the key patch. The last three rows of the table are for the class token: as a query
    of patches, as a key for patches, and with itself.
    """
    # The CPU is named explicitly: this needs real values even while a model is built on the meta device.
    y = torch.arange(rows, device="cpu").repeat_interleave(columns)
    x = torch.arange(columns, device="cpu").repeat(rows)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    index = torch.empty(rows * columns + 1, rows * columns + 1, dtype=torch.int64, device="cpu")
    index[1:, 1:] = (dy + rows - 1) * (2 * columns - 1) + dx + columns - 1
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


def bias_table(config: ModelConfig) -> nn.Parameter:
    """Return a zero table of relative position biases, [(2 grid - 1)^2 + 3, H].

    It has one number for every head and every offset between two tokens.
    """
    return nn.Parameter(torch.zeros((2 * config.grid - 1) ** 2 + 3, config.heads))


class SharedBias(nn.Module):
    """The table of relative position biases that all blocks share.

    It is a module of its own because the published weights name it as one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.relative_position_bias_table = bias_table(config)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        # Queries and values have a bias, keys do not: it would add the same number to every
        # logit of a row, and softmax ignores that. The published weights have no such parameter.
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        # `Backbone` reads it: the index into the table is the same for all blocks and is kept there, once.
        self.relative_position_bias_table = (
            bias_table(config) if config.position == "relative-per-block" else None
        )

    def forward(self, tokens: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Let the query tokens attend to all tokens.

        Args:
            tokens: Float [B, T, D].
            bias: Added to the logits, [H, T, T] or [B, H, S, T].
            queries: Float [B, S, D], the tokens whose output is wanted. None: all.

        Returns:
            Float [B, S, D].
        """
        q, k, v = self._project(tokens, queries)
        if tokens.device.type == "cpu":
            # On a CPU the fused kernel cannot give a bias its gradient, and its fallback is slower than this.
            mixed = _softmax(q, k, bias) @ v
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)
            )
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, tokens: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Return the attention weights of each query token on all tokens, [B, H, S, T].

        Each row sums to 1. The arguments are those of `forward`.
        """
        q, k, _ = self._project(tokens, queries)
        return _softmax(q, k, bias)

    def _project(self, tokens: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, S, C], keys and values [B, H, T, C]."""
        dim = tokens.shape[-1]
        no_bias = torch.zeros_like(self.v_bias)
        if queries is None:
            projected = F.linear(tokens, self.qkv.weight, torch.cat([self.q_bias, no_bias, self.v_bias]))
            q, k, v = projected.reshape(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return q, k, v
        q = (
            F.linear(queries, self.qkv.weight[:dim], self.q_bias)
            .reshape(*queries.shape[:2], self.heads, -1)
            .transpose(1, 2)
        )
        projected = F.linear(tokens, self.qkv.weight[dim:], torch.cat([no_bias, self.v_bias]))
        k, v = projected.reshape(*tokens.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Return the weights [B, H, S, T] of queries [B, H, S, C] on keys [B, H, T, C]."""
    logits: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits += bias
    return logits.softmax(-1)


def take_biases(bias: Tensor, rows: Tensor) -> Tensor:
    """Return the biases [B, H, S, T] of the query tokens `rows` [B, S], from [H, T, T]."""
    heads, length, _ = bias.shape
    by_row = bias.transpose(0, 1).reshape(length, heads * length)
    return F.embedding(rows, by_row).reshape(*rows.shape, heads, length).transpose(1, 2)
