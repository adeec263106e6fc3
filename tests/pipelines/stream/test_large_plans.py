"""512 workers and a billion images, simulated: what the driver, the dispatcher and a checkpoint hold stays
small. No data, no Ray.
"""

import pickle

import numpy as np
import pytest

from pipelines.stream.graph import block_rows
from pipelines.stream.ledger import Ledger
from pipelines.stream.rounds import plan_round, shares_of_streams, slots_of_round
from pipelines.training.fit import BLOCKS_PER_ROUND

IMAGES, UNIT_ROWS, WORKERS, BATCH, EPOCHS = 1_000_000_000, 1_000, 512, 32_768, 10
UNITS = IMAGES // UNIT_ROWS


@pytest.fixture(scope="module")
def ledger():
    """In the middle of the third epoch."""
    ledger = Ledger(np.full(UNITS, UNIT_ROWS, np.int32))
    ledger.complete = 2
    rng = np.random.default_rng(0)
    ledger._finished[2] = rng.random(UNITS) < 0.5
    # As many units are open as the reading tasks and the buffers of a run of this size hold.
    for unit in np.flatnonzero(~ledger._finished[2])[:2000].tolist():
        ledger._open[2, unit] = rng.random(UNIT_ROWS) < 0.5
    return ledger


def rows_of_round(streams):
    return streams * BLOCKS_PER_ROUND * block_rows(BATCH // WORKERS)


def plan(ledger, *, streams):
    each = slots_of_round(EPOCHS * UNITS // streams, cores=4096 // streams)
    shares = shares_of_streams(streams, WORKERS)
    return plan_round(
        ledger, seed=0, epochs=EPOCHS, max_rows=rows_of_round(streams), slots=streams * each, shares=shares
    )


def test_a_checkpoint_holds_the_ledger_in_half_a_megabyte(ledger):
    content = ledger.to_bytes()
    assert len(content) < 500_000
    assert Ledger.from_bytes(content).settled == ledger.settled


def test_the_dispatcher_holds_the_ledger_in_a_few_bytes_a_unit(ledger):
    held = ledger.rows.nbytes + sum(
        bits.nbytes for bits in (*ledger._finished.values(), *ledger._open.values())
    )
    assert held < 12 * UNITS


@pytest.mark.parametrize(("streams", "most_bytes"), [(1, 300_000), (200, 50_000_000)])
def test_a_round_lasts_many_steps_takes_a_few_bytes_a_unit_and_gives_every_reading_task_units_to_mix(
    ledger, streams, most_bytes
):
    planned, rows = plan(ledger, streams=streams), rows_of_round(streams)
    assert rows <= planned.rows < rows + UNIT_ROWS
    assert planned.rows / BATCH > 90
    assert len(pickle.dumps(planned)) < most_bytes
    answer = planned.slot(0)
    assert len(answer) >= 8
    assert len(pickle.dumps(answer)) < 200_000, "what a reading task is told travels through the dispatcher"
