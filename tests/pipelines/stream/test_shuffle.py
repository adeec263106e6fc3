import numpy as np
import pytest

from pipelines.stream.shuffle import shuffle


def numbered(count, size):
    return [
        {"row": np.arange(start, start + size), "twice": 2 * np.arange(start, start + size)[:, None]}
        for start in range(0, count * size, size)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_as_many_batches_come_out_as_go_in_and_every_row_once(count):
    out = list(shuffle(iter(numbered(count, 8)), np.random.default_rng(0)))
    assert [len(batch["row"]) for batch in out] == [8] * count
    rows = [row for batch in out for row in batch["row"].tolist()]
    assert sorted(rows) == list(range(8 * count))
    for batch in out:
        np.testing.assert_array_equal(batch["twice"], 2 * batch["row"][:, None])


def test_rows_leave_their_batch_but_soon():
    out = list(shuffle(iter(numbered(200, 16)), np.random.default_rng(0)))
    origins = [batch["row"] // 16 for batch in out]
    assert np.mean([len(np.unique(origin)) for origin in origins]) > 4
    # A row stays with probability 2/3 at every batch: three batches on average.
    delays = np.concatenate([number + 2 - origin for number, origin in enumerate(origins[:-2])])
    assert 1.7 < delays.mean() < 2.3


def test_the_same_rows_in_the_same_order_come_out_the_same_and_the_input_is_left_alone():
    given = numbered(10, 8)
    first, second = (list(shuffle(iter(given), np.random.default_rng(3))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["row"], other["row"])
    np.testing.assert_array_equal(np.concatenate([batch["row"] for batch in given]), np.arange(80))
