"""Decide the order in which an epoch visits its units, and the rows that the next round reads. Pure
functions: no Ray, no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import seeds
from pipelines.stream.ledger import Ints, Ledger

MOST_SLOTS = 256
"""Most reading tasks in a stream's round: enough for hundreds of cores, and few enough to cost almost
nothing."""

UNITS_PER_SLOT = 8
"""Number of units per slot. Rows are mixed across the units of a slot, so that shards sorted by class give
mixed batches."""


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

    A round does not change once it is planned: a reading task that is retried gets the same slot again,
    whatever has been settled in between.

    Several streams divide a round epoch by epoch. If a round were divided as a whole, some workers would be
    epochs ahead of others, and images would be repeated long before all had been seen. The division is exact
    to the row: a stream with less than a batch for each of its workers would stop all streams. Two streams
    read the unit at such a border, each a part of its rows.

    Args:
        epoch: Epoch of every unit, int [U].
        unit: The units, int [U].
        left: Rows that the unit has left, int [U].
        partial: The rows that are left in units that were read in part, by (epoch, unit).
        slots: Number of slots; one reading task works through one slot. A multiple of the number of streams.
        shares: Number of workers of each stream.
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
        # Rows of an epoch that cannot be divided evenly among the workers are divided together with the next
        # epoch's.
        epochs = np.unique(np.append(0, ends[:-1][np.diff(epoch) != 0] // workers * workers))
        cuts = np.cumsum([0, *shares]) * np.diff(np.append(epochs, total))[:, None] // workers
        borders = (epochs[:, None] + cuts[:, :-1]).ravel()
        # Parts begin where units begin, and where streams begin.
        begins = np.unique(np.concatenate([ends - left, borders])) if total else ends
        source = np.searchsorted(ends, begins, side="right")
        self.epoch, self.unit, self.partial = epoch[source], unit[source], partial
        self.left: Ints = np.diff(np.append(begins, total))
        self._first: Ints = begins - (ends - left)[source]
        # A part belongs to the slot that contains its first row, counted over all rows of its stream.
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
