"""The order in which an epoch visits its units, and the rows that the next round reads. Pure functions: no
Ray, nothing stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import seeds
from pipelines.stream.ledger import Ints, Ledger

MOST_SLOTS = 256
"""Reading tasks of a stream's round: enough for hundreds of cores, few enough to cost nothing."""

UNITS_PER_SLOT = 8
"""Rows are mixed across the units of a slot, so that shards sorted by class give mixed batches. That takes
several units a slot."""


def slots_of_round(units: int, *, cores: int) -> int:
    """Choose the number of slots of a stream's rounds, so that every core has work.

    Args:
        units: Units that the stream reads, all epochs together.
        cores: Cores that it reads with.
    """
    return max(1, min(MOST_SLOTS, max(units // UNITS_PER_SLOT, min(units, cores))))


def stream_of(rank: int, *, streams: int, workers: int) -> int:
    """Return the stream that a worker reads. Neighbours share one; numbers of workers differ by one
    at most.
    """
    return rank * streams // workers


def shares_of_streams(streams: int, workers: int) -> list[int]:
    """Count the workers of each stream."""
    streams_of_ranks = [stream_of(rank, streams=streams, workers=workers) for rank in range(workers)]
    return [streams_of_ranks.count(stream) for stream in range(streams)]


def epoch_order(seed: int, epoch: int, units: int) -> Ints:
    """Return the units in the order in which an epoch visits them, int [U]."""
    return seeds.generator(seed, seeds.ORDER, epoch, 0, 0).permutation(units)


@dataclass(frozen=True)
class Part:
    """Rows of one unit that a round reads."""

    epoch: int
    unit: int
    rows: Ints


class Round:
    """The next rows of a run, oldest epoch first, divided into slots of about equal size.

    It is fixed when it is planned: a reading task that is retried asks for its slot again, and gets the same
    answer whatever has been settled in between.

    Several streams divide a round epoch by epoch. Divided as a whole, some workers would be epochs ahead of
    others, and images would come again long before all had been seen. The division is exact to the row: a
    stream with less than a batch for each of its workers would stop all streams. Two streams open the unit at
    such a border, and each of its rows is read by one of them.

    Args:
        epoch: Epoch of every unit, int [U].
        unit: The units, int [U].
        left: Rows that the unit has left, int [U].
        partial: The rows that are left of units that are not whole, by (epoch, unit).
        slots: Number of slots; one reading task works through one slot. A multiple of the number of streams.
        shares: How many workers each stream serves.
    """

    def __init__(
        self,
        epoch: Ints,
        unit: Ints,
        left: Ints,
        partial: dict[tuple[int, int], Ints],
        slots: int,
        shares: Sequence[int] = (1,),
    ) -> None:
        total, ends, streams, workers = int(left.sum()), np.cumsum(left), len(shares), sum(shares)
        # Rows of an epoch that do not divide evenly among the workers are divided together with the next
        # epoch.
        epochs = np.unique(np.append(0, ends[:-1][np.diff(epoch) != 0] // workers * workers))
        cuts = np.cumsum([0, *shares]) * np.diff(np.append(epochs, total))[:, None] // workers
        borders = (epochs[:, None] + cuts[:, :-1]).ravel()
        # Parts begin where units do, and where streams do.
        begins = np.unique(np.concatenate([ends - left, borders])) if total else ends
        source = np.searchsorted(ends, begins, side="right")
        self.epoch, self.unit, self.partial = epoch[source], unit[source], partial
        self.left: Ints = np.diff(np.append(begins, total))
        self._first: Ints = begins - (ends - left)[source]
        # A part belongs to the slot in which its first row falls, of all the rows of its stream.
        rows = np.diff(cuts, axis=1)
        before = (np.cumsum(rows, axis=0) - rows).ravel()
        border = np.searchsorted(borders, begins, side="right") - 1
        stream, each = border % streams, slots // streams
        place = before[border] + begins - borders[border]
        self._slot: NDArray[np.int64] = stream * each + place * each // rows.sum(axis=0)[stream]

    @property
    def rows(self) -> int:
        """Rows of the whole round."""
        return int(self.left.sum())

    def slot(self, index: int) -> list[Part]:
        """The parts of one slot, in the order of the schedule."""
        parts = []
        for i in np.flatnonzero(self._slot == index):
            key = (int(self.epoch[i]), int(self.unit[i]))
            rows = np.arange(self._first[i], self._first[i] + self.left[i])
            parts.append(Part(*key, self.partial[key][rows] if key in self.partial else rows))
        return parts


def plan_round(
    ledger: Ledger, *, seed: int, epochs: int, max_rows: int, slots: int, shares: Sequence[int] = (1,)
) -> Round:
    """Plan the next round: rows that are left, oldest epoch first, up to `max_rows`.

    Time and memory grow with the epochs that the round touches, not with all epochs. The other arguments are
    those of `Round`.
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
        partial |= {
            (epoch, unit): ledger.left(epoch, unit)
            for unit in order[counts[order] < ledger.rows[order]].tolist()
        }
        planned.append((np.full(len(order), epoch), order, counts[order]))
        total += int(counts[order].sum())
        epoch += 1
    nothing = np.zeros(0, np.int64)
    columns = [np.concatenate([nothing, *(part[column] for part in planned)]) for column in range(3)]
    return Round(columns[0], columns[1], columns[2], partial, slots, shares)
