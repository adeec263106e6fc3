"""512 workers and a billion images, simulated: what the driver, the dispatcher and a checkpoint hold stays small. No data, no Ray."""

import pickle

import numpy as np
import pytest

from pipelines.job import BLOCKS_PER_ROUND
from pipelines.ledger import Ledger
from pipelines.schedule import plan_round, slots_of_round
from pipelines.stream import block_rows

IMAGES, UNIT_ROWS, WORKERS, BATCH, EPOCHS = 1_000_000_000, 1_000, 512, 32_768, 10
UNITS = IMAGES // UNIT_ROWS


@pytest.fixture(scope="module")
def plan():
    """The ledger in the middle of the third epoch, and the round that is planned from it."""
    ledger = Ledger(np.full(UNITS, UNIT_ROWS, np.int32))
    ledger.complete = 2
    rng = np.random.default_rng(0)
    ledger._finished[2] = rng.random(UNITS) < 0.5
    # As many units are open as the reading tasks and the buffers of a run of this size hold.
    for unit in np.flatnonzero(~ledger._finished[2])[:2000].tolist():
        ledger._open[2, unit] = rng.random(UNIT_ROWS) < 0.5
    slots = slots_of_round(EPOCHS * UNITS, cores=4096)
    rows = BLOCKS_PER_ROUND * block_rows(BATCH // WORKERS)
    return ledger, plan_round(ledger, seed=0, epochs=EPOCHS, max_rows=rows, slots=slots), rows


def test_a_checkpoint_holds_the_ledger_in_less_than_a_megabyte(plan):
    ledger, _, _ = plan
    content = ledger.to_bytes()
    assert len(content) < 1_000_000
    assert Ledger.from_bytes(content).settled == ledger.settled


def test_the_dispatcher_holds_ledger_and_round_in_a_few_bytes_a_unit(plan):
    ledger, planned, _ = plan
    held = ledger.rows.nbytes + sum(bits.nbytes for bits in (*ledger._finished.values(), *ledger._open.values()))
    assert held < 12 * UNITS
    assert len(pickle.dumps(planned)) < 10_000_000


def test_a_round_lasts_many_steps_and_gives_every_reading_task_units_to_mix(plan):
    _, planned, rows = plan
    assert rows <= planned.rows < rows + UNIT_ROWS
    assert planned.rows / BATCH > 90
    answer = planned.slot(0)
    assert len(answer) >= 8
    assert len(pickle.dumps(answer)) < 1_000_000, "what a reading task is told travels through the dispatcher"
