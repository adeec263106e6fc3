import numpy as np
import pytest

from pipelines.stream.ledger import Ledger, LedgerError

ROWS = np.array([5, 3, 8, 1])


def settle(ledger, keys, status=None):
    epoch, unit, row = np.array(keys, np.int64).reshape(-1, 3).T
    ledger.settle(epoch, unit, row, np.zeros(len(keys), np.int64) if status is None else np.array(status))


def test_it_agrees_with_a_plain_set_of_keys_over_random_batches():
    rng = np.random.default_rng(0)
    keys = [(epoch, unit, row) for epoch in range(4) for unit, rows in enumerate(ROWS) for row in range(rows)]
    # Mostly in order, as a stream is, but with neighbours swapped across epochs.
    keys = [keys[i] for i in np.argsort(np.arange(len(keys)) + rng.normal(0, 8, len(keys)))]
    ledger, plain = Ledger(ROWS), set()
    for start in range(0, len(keys), 7):
        settle(ledger, keys[start : start + 7])
        plain |= set(keys[start : start + 7])
        ledger = Ledger.from_bytes(ledger.to_bytes())  # what a checkpoint does to it
        assert ledger.settled == len(plain)
        for epoch in range(4):
            left = [
                [row for row in range(rows) if (epoch, unit, row) not in plain]
                for unit, rows in enumerate(ROWS)
            ]
            assert [ledger.left(epoch, unit).tolist() for unit in range(len(ROWS))] == left
            assert ledger.left_counts(epoch).tolist() == [len(rows) for rows in left]
        assert ledger.complete == next(
            (e for e in range(4) if any((e, u, r) not in plain for e2, u, r in keys if e2 == e)), 4
        )


@pytest.mark.parametrize("again", [(0, 0, 2), (0, 1, 0)])  # in a unit that is open, in one that is finished
def test_a_sample_settled_twice_is_an_error(again):
    ledger = Ledger(ROWS)
    settle(ledger, [(0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2)])
    with pytest.raises(LedgerError, match="settled twice"):
        settle(ledger, [again])
    with pytest.raises(LedgerError, match="settled twice"):
        settle(ledger, [(1, 2, 3), (1, 2, 3)])


def test_undecodable_images_are_settled_and_listed_once_for_all_epochs():
    ledger = Ledger(ROWS)
    settle(ledger, [(0, 2, 4), (0, 2, 5), (1, 2, 4)], status=[3, 0, 3])
    ledger = Ledger.from_bytes(ledger.to_bytes())
    assert ledger.quarantine == {(2, 4): 3}
    assert (ledger.settled, ledger.quarantined) == (3, 2)


def test_complete_epochs_of_imagenet_leave_nothing_behind():
    rows = np.full(12_812, 100)
    ledger = Ledger(rows)
    for epoch in range(3):
        unit, row = np.divmod(np.arange(rows.sum()), 100)
        for part in np.array_split(np.arange(len(unit)), 50):
            ledger.settle(np.full(len(part), epoch), unit[part], row[part], np.zeros(len(part), np.int64))
    assert ledger.complete == 3
    # In the middle of an epoch, a hundred units half read: what every checkpoint carries.
    unit = np.arange(6_000).repeat(100)
    ledger.settle(np.full(len(unit), 3), unit, np.tile(np.arange(100), 6_000), np.zeros(len(unit), np.int64))
    unit = np.arange(6_000, 6_100).repeat(50)
    ledger.settle(
        np.full(len(unit), 3), unit, np.tile(np.arange(0, 100, 2), 100), np.zeros(len(unit), np.int64)
    )
    assert len(ledger.to_bytes()) < 160_000
