"""The shuffle buffer in front of the optimizer: the last of three mixings, after the order of the units and
that of a slot's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]


def shuffle(batches: Iterator[Batch], rng: np.random.Generator, *, held: int = 2) -> Iterator[Batch]:
    """Mix the rows of neighbouring batches: each comes out with rows drawn from those held back and the one
    that has just come in.

    As many batches come out as go in, and every row once, so workers that get equally many stay together.
    What comes out is a function of the rows, their order and the generator, not of the blocks in which they
    travelled.

    Args:
        batches: All of one size, with the same columns.
        rng: Draws which rows come out.
        held: Batches that are held back.

    Yields:
        Batches of that size, in memory of their own.
    """
    pool: Batch = {}
    for batch in batches:
        size = len(next(iter(batch.values())))
        if not pool or len(next(iter(pool.values()))) < held * size:
            pool = {
                name: np.concatenate([pool[name], column]) if pool else column.copy()
                for name, column in batch.items()
            }
            continue
        chosen = rng.choice((held + 1) * size, size, replace=False)
        old, new = chosen[chosen < held * size], chosen[chosen >= held * size] - held * size
        left = np.delete(np.arange(size), new)
        mixed = {name: np.concatenate([pool[name][old], column[new]]) for name, column in batch.items()}
        for name, column in batch.items():
            pool[name][old] = column[left]
        yield mixed
    if pool:
        order = rng.permutation(len(next(iter(pool.values()))))
        for rows in np.split(order, range(size, len(order), size)):
            yield {name: column[rows] for name, column in pool.items()}
