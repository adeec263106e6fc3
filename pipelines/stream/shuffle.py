"""The shuffle buffer in front of the optimizer. It is the last of three shuffles, after that of the units and
that of the rows of a slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]


def shuffle(batches: Iterator[Batch], rng: np.random.Generator, *, held: int = 2) -> Iterator[Batch]:
    """Mix the rows of successive batches: each new batch is drawn from the rows that are held back and from
    the batch that has just arrived.

    The number of batches stays the same and every row is returned once, so workers with equally many batches
    stay in step. The result depends on the rows, their order and the generator, but not on the blocks in
    which the rows arrived.

    Args:
        batches: Batches of one size, with the same columns.
        rng: Draws the rows of each batch.
        held: Number of batches that are held back.

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
