"""In which order an epoch visits its units, and what the next round reads. Pure: no Ray, nothing stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import seeds
from pipelines.ledger import Ints, Ledger

MOST_SLOTS = 256
"""Reading tasks of a round: enough for hundreds of cores, few enough to cost nothing."""

UNITS_PER_SLOT = 8
"""A slot's rows are mixed across its units, so that shards sorted by class give mixed batches: it takes several units to mix."""


def slots_of_round(units: int, *, cores: int) -> int:
    """Into how many slots to divide rounds of a run that reads `units` units, all epochs together: some work for every core."""
    return max(1, min(MOST_SLOTS, max(units // UNITS_PER_SLOT, min(units, cores))))


def epoch_order(seed: int, epoch: int, units: int) -> Ints:
    """The units in the order in which an epoch visits them, int [U]."""
    return seeds.generator(seed, seeds.ORDER, epoch, 0, 0).permutation(units)


@dataclass(frozen=True)
class Part:
    """Rows of one unit that a round reads."""

    epoch: int
    unit: int
    rows: Ints


class Round:
    """The next rows of a run, oldest epoch first, divided into slots of about equal size.

    It is fixed when it is planned: a slot that is asked again, because a reading task was retried, gives the
    same answer, whatever has been settled meanwhile.

    Args:
        epoch: Epoch of every part, int [P].
        unit: Unit of every part, int [P].
        left: Rows that the part has left, int [P].
        partial: These rows, for the parts that are not whole units, by (epoch, unit).
        slots: Number of slots; a slot is what one reading task works through.
    """

    def __init__(self, epoch: Ints, unit: Ints, left: Ints, partial: dict[tuple[int, int], Ints], slots: int) -> None:
        self.epoch, self.unit, self.left, self.partial = epoch, unit, left, partial
        # A part belongs to the slot in which its first row falls.
        before = np.cumsum(left) - left
        self._slot: NDArray[np.int64] = before * slots // max(1, int(left.sum()))

    @property
    def rows(self) -> int:
        """Rows of the whole round."""
        return int(self.left.sum())

    def slot(self, index: int) -> list[Part]:
        """The parts of one slot, in the order of the schedule."""
        parts = []
        for i in np.flatnonzero(self._slot == index):
            key = (int(self.epoch[i]), int(self.unit[i]))
            parts.append(Part(*key, self.partial[key] if key in self.partial else np.arange(self.left[i])))
        return parts


def plan_round(ledger: Ledger, *, seed: int, epochs: int, max_rows: int, slots: int) -> Round:
    """Plan what is left, oldest epoch first, until `max_rows` rows are reached.

    The work and memory are those of the epochs that the round touches, never of all epochs.
    """
    planned: list[tuple[Ints, Ints, Ints]] = []
    partial: dict[tuple[int, int], Ints] = {}
    total, epoch = 0, ledger.complete
    while epoch < epochs and total < max_rows:
        counts = ledger.left_counts(epoch)
        order = epoch_order(seed, epoch, len(counts))
        order = order[counts[order] > 0]
        before = np.cumsum(counts[order]) - counts[order]
        order = order[total + before < max_rows]
        partial |= {(epoch, unit): ledger.left(epoch, unit) for unit in order[counts[order] < ledger.rows[order]].tolist()}
        planned.append((np.full(len(order), epoch), order, counts[order]))
        total += int(counts[order].sum())
        epoch += 1
    nothing = np.zeros(0, np.int64)
    columns = [np.concatenate([nothing, *(part[column] for part in planned)]) for column in range(3)]
    return Round(columns[0], columns[1], columns[2], partial, slots)
