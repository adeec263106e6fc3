"""The ledger of settled samples: those trained on, and those quarantined because they cannot be decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bits = NDArray[np.bool_]


class LedgerError(RuntimeError):
    """A sample was settled twice, or does not exist: a bug in the stream, never a user's mistake."""


class Ledger:
    """The settled samples of all epochs, small enough to be part of every checkpoint.

    Epochs before `complete` are settled to the last row and cost nothing. For a later epoch the ledger keeps
    one bit for each unit, and one bit for each row of the units that are settled in part. A sample is (epoch,
    unit, row).

    Args:
        rows: Rows of every unit, int [U].
    """

    def __init__(self, rows: NDArray[np.integer]) -> None:
        self.rows = rows.astype(np.int64)
        self.complete = 0
        self.quarantine: dict[tuple[int, int], int] = {}
        """(unit, row) -> status, of images that cannot be decoded; the same in every epoch."""
        self.quarantined = 0
        """Samples settled without training, over all epochs."""
        self._finished: dict[int, Bits] = {}
        self._open: dict[tuple[int, int], Bits] = {}

    @property
    def settled(self) -> int:
        """Number of settled samples, over all epochs."""
        finished = sum(int(self.rows[bits].sum()) for bits in self._finished.values())
        return (
            self.complete * int(self.rows.sum())
            + finished
            + sum(int(bits.sum()) for bits in self._open.values())
        )

    def settle(self, epoch: Ints, unit: Ints, row: Ints, status: NDArray[np.integer]) -> None:
        """Record samples that the optimizer has stepped on. Those with a non-zero status are quarantined.

        Raises:
            LedgerError: If one of them is settled already.
        """
        for bad in np.flatnonzero(status):
            self.quarantine[int(unit[bad]), int(row[bad])] = int(status[bad])
        self.quarantined += int(np.count_nonzero(status))
        order = np.lexsort((row, unit, epoch))
        epoch, unit, row = epoch[order], unit[order], row[order]
        starts = (
            np.flatnonzero(np.r_[True, (epoch[1:] != epoch[:-1]) | (unit[1:] != unit[:-1])])
            if len(order)
            else order
        )
        for start, stop in zip(starts, np.r_[starts[1:], len(order)], strict=True):
            self._settle_unit(int(epoch[start]), int(unit[start]), row[start:stop])
        while self.complete in self._finished and self._finished[self.complete].all():
            del self._finished[self.complete]
            self.complete += 1

    def _settle_unit(self, epoch: int, unit: int, rows: Ints) -> None:
        bits = self._settled_bits(epoch, unit)
        if bits[rows].any() or (rows[1:] == rows[:-1]).any():
            raise LedgerError(
                f"epoch {epoch}, unit {unit}: rows {rows[bits[rows]].tolist() or rows.tolist()} were "
                "settled twice"
            )
        bits[rows] = True
        finished = self._finished.setdefault(epoch, np.zeros(len(self.rows), bool))
        if bits.all():
            self._open.pop((epoch, unit), None)
            finished[unit] = True
        else:
            self._open[epoch, unit] = bits

    def _settled_bits(self, epoch: int, unit: int) -> Bits:
        count = int(self.rows[unit])
        if epoch < self.complete or (epoch in self._finished and self._finished[epoch][unit]):
            return np.ones(count, bool)
        return self._open.get((epoch, unit), np.zeros(count, bool))

    def left(self, epoch: int, unit: int) -> Ints:
        """Rows of a unit that are not settled in an epoch, ascending."""
        return np.flatnonzero(~self._settled_bits(epoch, unit))

    def left_counts(self, epoch: int) -> Ints:
        """Count the rows of every unit that are not settled in an epoch, int [U]."""
        if epoch < self.complete:
            return np.zeros_like(self.rows)
        counts = self.rows.copy()
        if epoch in self._finished:
            counts[self._finished[epoch]] = 0
        for (open_epoch, unit), bits in self._open.items():
            if open_epoch == epoch:
                counts[unit] -= np.count_nonzero(bits)
        return counts

    def to_bytes(self) -> bytes:
        """Return the ledger as a compressed numpy archive without pickles."""
        epochs = sorted(self._finished)
        parts = sorted(self._open)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            rows=self.rows,
            complete=np.int64(self.complete),
            quarantined=np.int64(self.quarantined),
            quarantine=np.array(
                [(*key, status) for key, status in sorted(self.quarantine.items())], np.int64
            ).reshape(-1, 3),
            epochs=np.array(epochs, np.int64),
            finished=np.packbits(
                np.array([self._finished[epoch] for epoch in epochs], bool).reshape(
                    len(epochs), len(self.rows)
                ),
                axis=1,
            ),
            open_keys=np.array(parts, np.int64).reshape(-1, 2),
            open_bits=np.packbits(
                np.concatenate([self._open[part] for part in parts]) if parts else np.zeros(0, bool)
            ),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        """Read back what `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        ledger = cls(arrays["rows"])
        ledger.complete, ledger.quarantined = int(arrays["complete"]), int(arrays["quarantined"])
        ledger.quarantine = {(int(unit), int(row)): int(status) for unit, row, status in arrays["quarantine"]}
        units = len(ledger.rows)
        for epoch, packed in zip(arrays["epochs"].tolist(), arrays["finished"], strict=True):
            ledger._finished[epoch] = np.unpackbits(packed, count=units).astype(bool)
        ends = np.cumsum(ledger.rows[arrays["open_keys"][:, 1]])
        bits = np.unpackbits(arrays["open_bits"]).astype(bool)
        for (epoch, unit), end in zip(arrays["open_keys"].tolist(), ends.tolist(), strict=True):
            ledger._open[epoch, unit] = bits[end - int(ledger.rows[unit]) : end].copy()
        return ledger
