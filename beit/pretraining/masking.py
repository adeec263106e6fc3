"""Draw the masks that hide patches: the blockwise masks of the BEiT paper (arXiv 2106.08254, Algorithm 1),
random ones, and kinds of masks that a program registers.

    def stripes(rng: np.random.Generator, config: MaskConfig, grid: int) -> NDArray[np.bool_]:
        mask = np.zeros((grid, grid), np.bool_)
        mask[rng.permutation(grid)[: config.budget(grid) // grid]] = True
        return mask

    register_mask("stripes", stripes)  # for --mask.kind stripes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.checks import Options
from beit.config import MaskConfig
from beit.errors import UserError
from beit.registry import Registry

MIN_ASPECT = 0.3
ATTEMPTS = 10

TRIED = 20
"""Number of masks that are drawn to check a kind before it is used."""

Draw = Callable[[np.random.Generator, MaskConfig, int], NDArray[np.bool_]]
"""(source of all randomness, budget and more, patches along one side) -> bool [grid, grid], True = hidden."""
Check = Callable[[MaskConfig, int, Options], None]
"""Raises `UserError` for a configuration that does not suit a grid with this number of patches along a side.
The last argument names the fields for the message: `option("ratio")` is mask.ratio=0.4."""


@dataclass(frozen=True)
class MaskKind:
    """How masks of one kind are drawn. When it is pickled, the drawing function is pickled with it."""

    name: str
    draw: Draw
    check: Check


def suits_every_grid(config: MaskConfig, grid: int, option: Options) -> None:
    """The check of a kind that can always draw its masks."""


def register_mask(name: str, draw: Draw, *, check: Check = suits_every_grid) -> None:
    """Register a kind of masks, which `mask.kind` can then name.

    Args:
        name: Its name. If it is registered again, the latest counts.
        draw: Draws one mask, which hides at most `MaskConfig.budget(grid)` patches. The same generator must
            give the same mask, or runs cannot be resumed.
        check: Refuses configurations with which many masks would be empty. It is not called for a budget of
            0.
    """
    MASKS.add(name, MaskKind(name, draw, check))


def find_mask(name: str, *, option: str = "mask.kind") -> MaskKind:
    """Return the kind of masks with this name, which an option gave.

    Raises:
        UserError: If the name is unknown; the message suggests the nearest one.
    """
    return MASKS.find(name, option=option)


def check_mask(config: MaskConfig, grid: int, *, at: str = "mask.") -> None:
    """Refuse an unknown kind of masks, and what its own check refuses. A few masks are drawn and checked.

    Args:
        config: How masks are drawn.
        grid: Patches along one side.
        at: Path of the mask's config in the configuration of the job.

    Raises:
        UserError: If a field is refused; the message names it.
    """
    option = Options(config, at)
    kind = find_mask(config.kind, option=option.name("kind"))
    if (budget := config.budget(grid)) == 0:
        return
    kind.check(config, grid, option)
    rng = np.random.default_rng(0)
    for _ in range(TRIED):
        mask = kind.draw(rng, config, grid)
        if mask.shape != (grid, grid) or mask.dtype != np.bool_:
            raise UserError(
                f"{option('kind')} draws masks of {mask.dtype} {list(mask.shape)}",
                f"let it draw bool [{grid}, {grid}], True = hidden",
            )
        if mask.sum() > budget:
            raise UserError(
                f"{option('kind')} hides {mask.sum()} patches, and the budget is {budget}",
                "let it hide at most MaskConfig.budget(grid)",
            )


def draw_mask(rng: np.random.Generator, config: MaskConfig, grid: int) -> NDArray[np.bool_]:
    """Draw one mask of the configured kind as bool [grid, grid], True = hidden. Its name has to be registered
    in this process.
    """
    return find_mask(config.kind).draw(rng, config, grid)


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
        Bool [grid, grid], True = hidden. All False, if not one rectangle fitted: see `check_blockwise`.
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


def _draw_random(rng: np.random.Generator, config: MaskConfig, grid: int) -> NDArray[np.bool_]:
    return random_mask(rng, grid=grid, budget=config.budget(grid))


def _draw_blockwise(rng: np.random.Generator, config: MaskConfig, grid: int) -> NDArray[np.bool_]:
    return blockwise_mask(rng, grid=grid, budget=config.budget(grid), min_block=config.block(grid))


def check_blockwise(config: MaskConfig, grid: int, option: Options) -> None:
    """Refuse settings with which masks are often empty: rectangles must fit into the budget, and most of
    their shapes into the grid.

    With accepted settings, at most 1.6 % of the masks are empty (counted over grids of 3 to 32 patches a
    side).
    """
    budget, block = config.budget(grid), config.block(grid)
    other_kind = option("kind", "random")
    if grid < 3 or block > grid**2 / 5:
        smaller = option("min_block", max(1, grid**2 // 12))
        raise UserError(
            f"{option.name('min_block')}: rectangles of at least {block} patches rarely fit a grid of {grid} "
            f"x {grid}: many masks would be empty",
            f"set {other_kind}" if grid < 3 else f"set {smaller}, or {other_kind}",
        )
    if block > budget:
        smaller = option("min_block", max(1, budget // 4))
        raise UserError(
            f"{option('ratio', f'{config.ratio:.3g}')} hides at most {budget} of {grid**2} patches, fewer "
            f"than the smallest rectangle of {block} ({option.name('min_block')}): most masks would be empty",
            f"set {smaller}, raise {option.name('ratio')} to {2 * block / grid**2:.2f}, or set {other_kind}",
        )


MASKS: Registry[MaskKind] = Registry(
    "mask.kind",
    {
        kind.name: kind
        for kind in (
            MaskKind("blockwise", _draw_blockwise, check_blockwise),
            MaskKind("random", _draw_random, suits_every_grid),
        )
    },
    register="beit.pretraining.masking.register_mask",
)
