"""The dispatcher: an actor that holds the ledger, plans rounds, hands out slots, and settles samples."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pipelines.sources import Manifest, Unit
from pipelines.stream.ledger import Ints, Ledger
from pipelines.stream.rounds import Part, Round, plan_round, shares_of_streams


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that a dispatcher plans with."""

    seed: int
    epochs: int
    """Epochs of the run, rounded up."""
    total_rows: int
    """Samples that the run may settle, over all epochs."""
    max_rows: int
    """Most rows of a round. This limits the memory that Ray keeps until an execution ends."""
    slots: int
    """Reading tasks of a round, over all streams; a multiple of the number of streams."""
    streams: int = 1


class Dispatcher:
    """Holds the plan, the ledger and the current round. It runs as one small actor on the driver's machine.

    Every start of the worker group begins with `resume`, which returns a generation number. Calls with an
    older number are late messages of lost workers; they are ignored or refused. Before the first `resume`,
    and so after a restart of this actor, all calls are refused: the workers then fail, and their group starts
    again with the ledger of its checkpoint.
    """

    def __init__(self, manifest: Manifest, plan: Plan) -> None:
        self._manifest, self._plan = manifest, plan
        self._ledger: Ledger | None = None
        self._round: Round | None = None
        # All images found in any generation, in order. Readers remember how many they have read, so this list
        # never becomes shorter, unlike the ledger, which is rewound to a checkpoint.
        self._undecodable: dict[tuple[int, int], int] = {}
        # Generations do not count from 0: after a restart of this actor, a late message must not match a new
        # generation.
        self._generation = int(time.time())

    def resume(self, ledger: bytes | None) -> int:
        """Start a generation with the ledger of the checkpoint that rank 0 has loaded, None for an empty one.

        Returns:
            The generation's number.
        """
        self._ledger = Ledger(self._manifest.rows) if ledger is None else Ledger.from_bytes(ledger)
        if not np.array_equal(self._ledger.rows, self._manifest.rows):
            raise ValueError(
                "the checkpoint's ledger belongs to other data: its units have other row counts than the "
                "manifest's"
            )
        self._undecodable |= self._ledger.quarantine
        self._round = None
        self._generation += 1
        return self._generation

    def start_round(self, generation: int, minimum: int, workers: int = 1) -> int:
        """Plan the next round; returns its rows, or 0 if fewer than `minimum` are left."""
        ledger = self._current(generation)
        left = self._plan.total_rows - ledger.settled
        self._round = plan_round(
            ledger,
            seed=self._plan.seed,
            epochs=self._plan.epochs,
            max_rows=min(self._plan.max_rows, left),
            slots=self._plan.slots,
            shares=shares_of_streams(self._plan.streams, workers),
        )
        return self._round.rows if min(left, self._round.rows) >= minimum else 0

    def slot(self, index: int) -> list[tuple[Unit, Part]]:
        """Return the units and rows of a slot of the current round."""
        if self._round is None:
            raise RuntimeError(
                "no round is planned: the dispatcher was restarted and waits for the workers to resume"
            )
        return [(self._manifest.unit(part.unit), part) for part in self._round.slot(index)]

    def settle(self, generation: int, epoch: Ints, unit: Ints, row: Ints, status: Ints) -> None:
        """Settle a batch after the optimizer has stepped on it."""
        if generation == self._generation:
            self._current(generation).settle(epoch, unit, row, status)
            bad = status != 0
            keys = zip(unit[bad].tolist(), row[bad].tolist(), strict=True)
            self._undecodable |= dict(zip(keys, status[bad].tolist(), strict=True))

    def snapshot(self, generation: int) -> bytes:
        """Return the ledger for a checkpoint."""
        return self._current(generation).to_bytes()

    def quarantined(self, known: int) -> list[tuple[int, int, int]]:
        """List (unit, row, status) of images that could not be decoded, without the first `known` ones."""
        return [(unit, row, status) for (unit, row), status in list(self._undecodable.items())[known:]]

    def counts(self) -> dict[str, int]:
        """Count the settled samples, and the quarantined ones among them."""
        if self._ledger is None:
            return {"settled": 0, "quarantined": 0}
        return {"settled": self._ledger.settled, "quarantined": self._ledger.quarantined}

    def _current(self, generation: int) -> Ledger:
        if self._ledger is None or generation != self._generation:
            raise RuntimeError(
                f"generation {generation} of the workers is over; the dispatcher is at {self._generation}"
            )
        return self._ledger
