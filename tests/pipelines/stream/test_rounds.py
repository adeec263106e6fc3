import numpy as np
import pytest

from pipelines.stream.ledger import Ledger
from pipelines.stream.rounds import epoch_order, plan_round, shares_of_streams


def rows_of(plan, slots):
    return [
        (part.epoch, part.unit, row)
        for slot in range(slots)
        for part in plan.slot(slot)
        for row in part.rows.tolist()
    ]


def test_an_epoch_visits_every_unit_once_and_each_epoch_differently():
    orders = [epoch_order(7, epoch, 50).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == epoch_order(7, 0, 50).tolist() != epoch_order(8, 0, 50).tolist()


@pytest.mark.parametrize("max_rows", [13, 40, 10_000])
def test_rounds_cover_all_epochs_exactly_once_whatever_is_left_over_by_each(max_rows):
    rng = np.random.default_rng(max_rows)
    rows, epochs, slots = rng.integers(1, 9, 12), 3, 5
    ledger, seen, rounds = Ledger(rows), [], 0
    while (plan := plan_round(ledger, seed=1, epochs=epochs, max_rows=max_rows, slots=slots)).rows:
        keys = rows_of(plan, slots)
        assert len(keys) == plan.rows
        assert plan.rows < max_rows + rows.max()
        done = [
            keys[i] for i in rng.permutation(len(keys))[: max(1, int(0.8 * len(keys)))]
        ]  # the rest did not fill a batch
        ledger.settle(*np.array(done, np.int64).T, np.zeros(len(done), np.int64))
        seen += done
        rounds += 1
    assert sorted(seen) == [
        (e, u, r) for e in range(epochs) for u in range(len(rows)) for r in range(rows[u])
    ]
    assert rounds > 1


def test_the_oldest_epoch_comes_first_in_the_order_of_its_schedule():
    ledger = Ledger(np.full(6, 4))
    plan = plan_round(ledger, seed=3, epochs=9, max_rows=40, slots=4)
    units = [(part.epoch, part.unit) for slot in range(4) for part in plan.slot(slot)]
    assert units == [(0, unit) for unit in epoch_order(3, 0, 6)] + [
        (1, unit) for unit in epoch_order(3, 1, 6)[:4]
    ]


def test_a_slot_asked_again_gives_the_same_rows_though_some_are_settled_meanwhile():
    ledger = Ledger(np.full(6, 4))
    ledger.settle(np.zeros(2, int), np.array([2, 2]), np.array([0, 3]), np.zeros(2, int))
    plan = plan_round(ledger, seed=3, epochs=1, max_rows=100, slots=2)
    before = rows_of(plan, 2)
    assert (0, 2, 1) in before
    assert (0, 2, 3) not in before
    ledger.settle(np.zeros(3, int), np.array([1, 1, 5]), np.array([0, 1, 2]), np.zeros(3, int))
    assert rows_of(plan, 2) == before


def test_slots_are_of_about_equal_size():
    plan = plan_round(Ledger(np.full(300, 100)), seed=0, epochs=5, max_rows=150_000, slots=64)
    sizes = [sum(len(part.rows) for part in plan.slot(slot)) for slot in range(64)]
    assert max(sizes) - min(sizes) <= 100


@pytest.mark.parametrize(("streams", "workers"), [(2, 2), (2, 5), (3, 8)])
def test_streams_share_a_round_to_the_row_by_their_workers_and_together_it_is_the_round_of_one(
    streams, workers
):
    rng = np.random.default_rng(workers)
    ledger = Ledger(rng.integers(1, 40, 30))
    settled = np.unique(np.stack([np.zeros(60, int), rng.integers(0, 30, 60), np.zeros(60, int)], 1), axis=0)
    ledger.settle(*settled.T, np.zeros(len(settled), int))  # units that have rows left in part
    shares, each = shares_of_streams(streams, workers), 4
    assert sum(shares) == workers
    assert max(shares) - min(shares) <= 1
    plan = plan_round(ledger, seed=1, epochs=2, max_rows=700, slots=streams * each, shares=shares)
    one = plan_round(ledger, seed=1, epochs=2, max_rows=700, slots=each)
    assert sorted(rows_of(plan, streams * each)) == sorted(rows_of(one, each))
    of_streams = [
        sum(len(part.rows) for slot in range(s * each, (s + 1) * each) for part in plan.slot(slot))
        for s in range(streams)
    ]
    for rows, share in zip(of_streams, shares, strict=True):
        assert rows // share >= plan.rows // workers, (
            "each worker finds at least what an equal split of the whole would give it"
        )


def test_streams_go_through_the_same_epoch_at_the_same_time():
    shares, each, workers = shares_of_streams(3, 8), 16, 8
    plan = plan_round(
        Ledger(np.full(50, 37)), seed=0, epochs=6, max_rows=10_000_000, slots=3 * each, shares=shares
    )
    for stream, share in enumerate(shares):
        parts = [part for slot in range(stream * each, (stream + 1) * each) for part in plan.slot(slot)]
        epochs = [part.epoch for part in parts]
        assert epochs == sorted(epochs), "slots of a stream are in the order of the schedule"
        for epoch in range(6):
            rows = sum(len(part.rows) for part in parts if part.epoch == epoch)
            assert abs(rows - 50 * 37 * share / workers) < workers


def test_the_last_rows_reach_every_stream_though_they_are_of_one_unit():
    ledger = Ledger(np.array([25]))
    plan = plan_round(ledger, seed=0, epochs=1, max_rows=100, slots=4, shares=[1, 1, 1, 1])
    assert [len(plan.slot(slot)[0].rows) for slot in range(4)] == [6, 6, 6, 7]
    assert plan_round(ledger, seed=0, epochs=0, max_rows=100, slots=4, shares=[1, 1]).rows == 0


def test_a_round_of_imagenet_late_in_800_epochs_touches_few_epochs():
    rows = np.full(12_812, 100)
    ledger = Ledger(rows)
    ledger.complete = 750
    plan = plan_round(ledger, seed=0, epochs=800, max_rows=6_400_000, slots=256)
    assert sorted(set(plan.epoch.tolist())) == [750, 751, 752, 753, 754]
    held = plan.epoch.nbytes + plan.unit.nbytes + plan.left.nbytes
    assert held < 4 << 20
