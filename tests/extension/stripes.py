"""A kind of masks of one's own: whole columns of patches are hidden."""

import numpy as np

from beit.errors import UserError
from beit.pretraining.masking import register_mask


def draw(rng, config, grid):
    """Hide as many whole columns as the budget has room for."""
    mask = np.zeros((grid, grid), np.bool_)
    mask[:, rng.permutation(grid)[: config.budget(grid) // grid]] = True
    return mask


def check(config, grid, option):
    """Refuse a budget of less than a column."""
    if config.budget(grid) < grid:
        raise UserError(
            f"{option('ratio')} hides less than one column of {grid} patches",
            f"set {option('ratio', f'{1 / grid:.3g}')}, or more",
        )


register_mask("stripes", draw, check=check)
