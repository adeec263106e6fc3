"""Which patches are hidden: the blockwise masks of the BEiT paper (arXiv 2106.08254, Algorithm 1) and random
ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from beit.config import MaskConfig

MIN_ASPECT = 0.3
ATTEMPTS = 10


def draw_mask(rng: np.random.Generator, config: MaskConfig, grid: int) -> NDArray[np.bool_]:
    """Draw one mask of the configured kind as bool [grid, grid], True = hidden."""
    budget = config.budget(grid)
    if config.kind == "random":
        return random_mask(rng, grid=grid, budget=budget)
    return blockwise_mask(rng, grid=grid, budget=budget, min_block=config.block(grid))


def random_mask(rng: np.random.Generator, *, grid: int, budget: int) -> NDArray[np.bool_]:
    """Hide exactly `budget` patches, any set of them as likely as any other. Returns bool [grid, grid], True
    = hidden.
    """
    mask = np.zeros(grid * grid, dtype=np.bool_)
    mask[rng.permutation(grid * grid)[:budget]] = True
    return mask.reshape(grid, grid)


def blockwise_mask(rng: np.random.Generator, *, grid: int, budget: int, min_block: int) -> NDArray[np.bool_]:
    """Draw a blockwise mask as the authors' code does (microsoft/unilm, `beit/masking_generator.py`).

    Rectangles are added until `budget` patches are hidden. Each hides at least one new patch and may not
    overshoot the budget; when ten in a row fail, the mask stays below it. The authors' setting (grid 14,
    budget 75, smallest block 16) gives 74.5 hidden patches on average, and hides the centre more often than
    the edges: 72 % against 4 % in the corners.

    This differs from the paper's Algorithm 1, which may overshoot 40 % and draws the aspect linearly.

    Args:
        rng: Source of all randomness.
        grid: Patches along one side.
        budget: Most patches that are hidden.
        min_block: Fewest patches a rectangle is drawn with, before rounding to whole sides. When less than
            that is left of the budget, areas are drawn between the two, so that the rest can be filled.

    Returns:
        Bool [grid, grid], True = hidden. All False, if not one rectangle fitted: see `MaskConfig.check`.
    """
    # A mask is an integer of one bit a patch: a rectangle is one product and a shift, and counting is one
    # instruction. rows[h] has the first bit of h successive rows set.
    rows = [0]
    for row in range(grid - 1):
        rows.append(rows[row] | 1 << row * grid)
    log_aspect = math.log(MIN_ASPECT)
    uniforms: list[float] = []
    hidden, left_over = 0, budget
    while left_over > 0:
        for _ in range(ATTEMPTS):
            if len(uniforms) < 4:
                uniforms = rng.random(64).tolist()
            area = min_block + (left_over - min_block) * uniforms.pop()
            aspect = math.exp(log_aspect * (1 - 2 * uniforms.pop()))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if not (height < grid and width < grid):
                continue
            top = int((grid - height + 1) * uniforms.pop())
            left = int((grid - width + 1) * uniforms.pop())
            block = (rows[height] * ((1 << width) - 1)) << (top * grid + left)
            new = (block & ~hidden).bit_count()
            if 0 < new <= left_over:
                hidden |= block
                left_over -= new
                break
        else:
            break
    packed = np.frombuffer(hidden.to_bytes((grid * grid + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=grid * grid, bitorder="little").view(np.bool_).reshape(grid, grid)
