"""The arithmetic of `beit plan`, on numbers that are easy to do by hand."""

from dataclasses import replace

import pytest

from pipelines.planning import forecast
from pipelines.planning.forecast import (
    Costs,
    GpuRates,
    Machines,
    checkpoint_bytes,
    money,
    moved_bytes,
    on_cores,
    on_gpus,
)

COSTS = Costs(view=0.002, token=0.004, step=0.003, token_flop=50e9, step_flop=100e9, moved=300_000)
MACHINES = Machines(
    train_gpu="A100", train_gpus=8, train_cores=96, token_gpu="L4", token_gpus=1, view_cores=16
)


def on_machines(costs, **options):
    """A forecast on cores, with blocks so large that no coordinator is a limit."""
    return on_cores(costs, **{"block_rows": 10_000, **options})


def test_stages_that_share_cores_add_up():
    found = on_machines(COSTS, cores=18, workers=18, worker_threads=1, tokenizers=18, tokenizer_threads=1)
    assert found.bottleneck == "all cores"
    assert found.rate == pytest.approx(forecast.RUN_SHARE * 18 / 0.009)


@pytest.mark.parametrize(
    ("workers", "tokenizers", "limit", "rate"), [(1, 9, "training", 1 / 0.003), (9, 1, "tokens", 1 / 0.004)]
)
def test_a_stage_goes_no_faster_than_its_own_processes(workers, tokenizers, limit, rate):
    found = on_machines(
        COSTS, cores=64, workers=workers, worker_threads=1, tokenizers=tokenizers, tokenizer_threads=1
    )
    assert found.bottleneck == limit
    assert found.rate == pytest.approx(rate)


def test_twice_the_machines_are_twice_as_fast_and_nothing_is_free():
    one, two = (
        on_machines(
            COSTS, cores=4 * n, workers=2 * n, worker_threads=1, tokenizers=2 * n, tokenizer_threads=1
        )
        for n in (1, 2)
    )
    assert two.rate == pytest.approx(2 * one.rate)
    cached = on_machines(
        replace(COSTS, token=0.0), cores=4, workers=2, worker_threads=1, tokenizers=0, tokenizer_threads=0
    )
    assert cached.rate > one.rate
    assert "tokens" not in cached.limits


def test_gpus_train_at_their_share_of_the_peak_and_every_stage_gets_the_nodes_to_keep_up():
    found = on_gpus(COSTS, MACHINES, workers=16, utilisation=0.5, block_rows=1024)
    assert found.rate == pytest.approx(16 * 312e12 * 0.5 / 100e9)  # 24,960 images/s
    assert found.nodes["train"] == 2
    assert found.nodes["tokens"] == 21  # 24,960 x 50 GFLOP = 1,248 TFLOP/s, at 60.5 a card: 20.6
    # 24,960 x 2 ms = 49.9 cores; 2 x 96 cores less 16 for the workers are enough.
    assert found.nodes["views"] == 0
    lean = on_gpus(COSTS, replace(MACHINES, train_cores=8), workers=16, utilisation=0.5, block_rows=1024)
    assert lean.nodes["views"] == 4  # 49.9 cores at 0.9 x 16 a node: 3.5


def test_views_that_have_nodes_of_their_own_get_no_core_of_the_training_nodes():
    apart = replace(MACHINES, views_beside=False)
    found = on_gpus(COSTS, apart, workers=16, utilisation=0.5, block_rows=1024)
    assert found.nodes["views"] == 4  # 49.9 cores at 0.9 x 16 a node: 3.5
    few = on_gpus(COSTS, replace(apart, most={"views": 32}), workers=16, utilisation=0.5, block_rows=1024)
    assert (few.bottleneck, few.rate) == ("views, at most on 32 cores", pytest.approx(0.9 * 32 / 0.002))


def test_tokenizers_on_the_workers_gpus_take_their_time():
    alone = on_gpus(COSTS, MACHINES, workers=1, utilisation=0.5, block_rows=256)
    shared = on_gpus(COSTS, replace(MACHINES, token_gpu=None), workers=1, utilisation=0.5, block_rows=256)
    assert alone.rate / shared.rate == pytest.approx(1.5)
    assert "tokens" not in shared.nodes


def test_one_coordinator_is_the_limit_of_many_workers_with_small_blocks_and_streams_lift_it():
    found = on_gpus(COSTS, MACHINES, workers=512, utilisation=0.5, block_rows=64, streams=1)
    assert found.bottleneck == "1 coordinator"
    assert found.rate == 64 * forecast.COORDINATOR_BLOCKS[2]
    lifted = on_gpus(COSTS, MACHINES, workers=512, utilisation=0.5, block_rows=64)
    assert lifted.bottleneck == "training"
    fast = GpuRates(kind="A100", train=1e6, tokens=None)
    assert on_gpus(COSTS, MACHINES, workers=2, utilisation=0.5, block_rows=64, measured=fast).streams == 2, (
        "a stream needs a worker"
    )
    fewer = lifted.streams - 1
    assert (
        on_gpus(COSTS, MACHINES, workers=512, utilisation=0.5, block_rows=64, streams=fewer).bottleneck
        == f"{fewer} coordinators"
    )


def test_coordinators_share_the_cores_of_the_head():
    small = on_gpus(COSTS, replace(MACHINES, head_cores=4), workers=512, utilisation=0.5, block_rows=64)
    lifted = on_gpus(COSTS, MACHINES, workers=512, utilisation=0.5, block_rows=64)
    assert (small.streams, small.bottleneck) == (4, "4 coordinators")
    assert small.rate == 4 * 64 * forecast.COORDINATOR_BLOCKS[2]
    assert small.wanted == lifted.wanted == lifted.streams > 4, "what a larger head would need"
    asked = on_gpus(
        COSTS, replace(MACHINES, head_cores=4), workers=512, utilisation=0.5, block_rows=64, streams=200
    )
    assert (asked.bottleneck, asked.rate) == ("200 coordinators on 4 cores of the head", small.rate)
    slow = replace(COSTS, view=1.0, step_flop=1e9)
    readers = on_gpus(slow, replace(MACHINES, head_cores=1), workers=16, utilisation=0.5, block_rows=10_000)
    assert readers.streams > 1, "more reading tasks need streams, whatever the head"


def test_machines_without_gpus_meet_the_coordinator_too():
    many = {
        "cores": 8000,
        "workers": 4000,
        "worker_threads": 1,
        "tokenizers": 4000,
        "tokenizer_threads": 1,
        "block_rows": 32,
    }
    assert (
        on_cores(COSTS, **many).limits["1 coordinator"]
        == on_cores(COSTS, **many).rate
        == 32 * forecast.COORDINATOR_BLOCKS[2]
    )
    assert on_cores(COSTS, **many, streams=4).rate == 4 * 32 * forecast.COORDINATOR_BLOCKS[2]
    assert on_cores(COSTS, **many, streams=4, head_cores=2).rate == 2 * 32 * forecast.COORDINATOR_BLOCKS[2]


def test_views_that_take_more_cores_than_a_stream_has_reading_tasks_are_the_limit_and_streams_lift_it():
    heavy = replace(COSTS, view=0.05, step_flop=40e9)
    found = on_gpus(heavy, MACHINES, workers=8, utilisation=0.5, block_rows=10_000, streams=1)
    assert found.bottleneck == "256 reading tasks"
    assert found.rate == pytest.approx(256 / 0.05)
    lifted = on_gpus(heavy, MACHINES, workers=8, utilisation=0.5, block_rows=10_000)
    assert lifted.bottleneck == "training"
    assert lifted.streams == 7  # 8 x 3,900 images/s x 50 ms = 1,560 cores, 256 a stream


@pytest.mark.parametrize(
    ("most", "limit", "rate"),
    [
        ({"train": 16, "tokens": 8, "views": 1e6}, "tokens, at most on 8 x L4", 8 * 121e12 * 0.5 / 50e9),
        ({"train": 16, "tokens": 64, "views": 16}, "views, at most on 16 cores", 0.9 * 16 / 0.002),
        ({"train": 16, "tokens": 64, "views": 1e6}, "training", 16 * 312e12 * 0.5 / 100e9),
    ],
)
def test_what_the_cluster_has_too_little_of_is_the_limit_and_no_node_is_planned_beyond_it(most, limit, rate):
    machines = replace(MACHINES, train_cores=8, most=most)
    found = on_gpus(COSTS, machines, workers=16, utilisation=0.5, block_rows=10_000)
    assert (found.bottleneck, found.rate) == (limit, pytest.approx(rate))
    assert found.nodes["tokens"] <= most["tokens"]
    assert found.nodes["views"] * machines.view_cores <= most["views"]


@pytest.mark.parametrize(
    ("kind", "token_gpu", "tokenized", "training", "extrapolated"),
    [
        ("A100", "L4", True, 4000, {"L4"}),
        ("A100", "A100", True, 4000, set()),
        ("A100", None, True, 3200, set()),  # 1 ms for the step + 0.25 ms for the tokens
        ("A100", None, False, 4000, set()),
        ("A100", "L4", False, 4000, set()),  # tokens come from a cache: their GPUs have nothing to do
        ("L4", "L4", True, 4 * 312e12 * 0.5 / 100e9, {"A100"}),
        ("T4", None, True, 4 * 312e12 * 0.5 / 150e9, {"A100"}),
        ("T4", "L4", True, 4 * 312e12 * 0.5 / 100e9, {"A100", "L4"}),
    ],
)
def test_what_was_measured_stands_in_place_of_the_peak_and_only_the_rest_is_extrapolated(
    kind, token_gpu, tokenized, training, extrapolated
):
    costs = COSTS if tokenized else replace(COSTS, token=0.0, token_flop=0.0)
    measured = GpuRates(kind=kind, train=1000.0, tokens=4000.0 if tokenized else None)
    found = on_gpus(
        costs,
        replace(MACHINES, token_gpu=token_gpu),
        workers=4,
        utilisation=0.5,
        block_rows=512,
        measured=measured,
    )
    assert found.limits["training"] == pytest.approx(training)
    assert found.extrapolated == extrapolated


def test_a_kind_that_no_data_sheet_is_known_of_is_planned_as_measured():
    measured = GpuRates(kind="GeForce", train=1000.0, tokens=4000.0)
    machines = replace(
        MACHINES,
        train_gpu="GeForce",
        token_gpu="GeForce",
        tokens="spare gpus",
        most={"train": 8, "tokens": 1},
    )
    found = on_gpus(COSTS, machines, workers=7, utilisation=0.5, block_rows=10_000, measured=measured)
    assert (found.bottleneck, found.rate) == ("tokens, at most on 1 x GeForce", pytest.approx(4000))
    assert found.nodes == {"train": 1, "views": 0}, "the tokenizer's GPU is one of the training node's"


@pytest.mark.parametrize("most_nodes", range(2, 12))
def test_nodes_that_are_bounded_together_are_divided_between_the_stages_as_well_as_can_be(most_nodes):
    machines = replace(MACHINES, train_cores=12, most_nodes=most_nodes)
    found = on_gpus(COSTS, machines, workers=16, utilisation=0.5, block_rows=10_000)
    token, view = 121e12 * 0.5 / 50e9, 0.9 / 0.002
    best = max(
        min(n * token, (2 * 12 - 16 + 16 * (most_nodes - 2 - n)) * view) for n in range(most_nodes - 1)
    )
    assert found.rate == pytest.approx(min(best, 16 * 312e12 * 0.5 / 100e9))
    assert sum(found.nodes.values()) <= most_nodes


def test_tokenizers_on_cores_take_them_from_the_views():
    machines = replace(
        MACHINES, token_gpu=None, tokens="cores", train_cores=20, most={"train": 8, "views": 0}
    )
    found = on_gpus(COSTS, machines, workers=2, utilisation=0.5, block_rows=10_000)
    assert found.bottleneck == "views and tokens, at most on 18 cores"
    assert found.rate == pytest.approx(0.9 * 18 / 0.006)
    assert found.limits["training"] == pytest.approx(2 * 312e12 * 0.5 / 100e9)


def test_money_is_that_of_all_nodes_and_unknown_where_a_price_is():
    found = on_gpus(COSTS, replace(MACHINES, train_cores=8), workers=16, utilisation=0.5, block_rows=1024)
    prices = {"train": (10.0, 30.0), "tokens": (0.5, 1.0), "views": (0.25, 0.5), "head": (0.2, 0.2)}
    low, high = money(found, prices, hours=10)
    assert low == pytest.approx((10 + forecast.AROUND_HOURS) * (2 * 10 + 21 * 0.5 + 4 * 0.25 + 0.2))
    assert high == pytest.approx((10 + forecast.AROUND_HOURS) * (2 * 30 + 21 * 1.0 + 4 * 0.5 + 0.2))
    assert money(found, {name: price for name, price in prices.items() if name != "tokens"}, hours=10) is None


def test_sizes_are_those_of_the_arrays_that_travel():
    # The stream's documentation: about 151 kB for a sample of 224 px.
    assert moved_bytes(patch_px=224, token_px=112, patches=196, tokenized=False) == pytest.approx(
        151_000, rel=0.01
    )
    twice = moved_bytes(patch_px=224, token_px=112, patches=196, tokenized=True)
    assert twice == pytest.approx(2 * 151_000 + 3 * 112**2, rel=0.01)
    assert checkpoint_bytes(86_000_000) == 86_000_000 * 4 * 3
    assert forecast.cache_bytes(images=1_281_167, patches=196, epochs=2) == 2 * 1_281_167 * 392
