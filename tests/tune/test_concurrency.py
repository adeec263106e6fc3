import pytest

from beit.errors import UserError
from pipelines.cluster.placement import Node
from pipelines.config.resources import ResourceConfig
from tune.concurrency import count, schedule

TWO_CORES = [Node(cpus=2, gpus=0)]


def test_on_two_cores_one_trial_runs_after_another():
    found = schedule(ResourceConfig(), TWO_CORES, tokenize=False)
    assert found.concurrent == 1
    assert found.placement.workers == 1
    assert (
        found.line
        == "a trial needs 1 worker x 1 CPU + 0.25 CPU to read; 2 CPU / 1.25 = 1.60: room for 1; 1 at a time"
    )


def test_each_gpu_takes_a_trial_until_the_cores_run_out():
    nodes = [Node(cpus=16, gpus=8)]
    assert schedule(ResourceConfig(), nodes, tokenize=False).concurrent == 8
    assert schedule(ResourceConfig(workers=2), nodes, tokenize=False).concurrent == 4
    few = schedule(ResourceConfig(), nodes, tokenize=False, data_cpus=3)
    assert few.concurrent == 4, "16 CPU / (1 worker + 3 to read) = 4"
    assert "16 CPU / 4 = 4.00" in few.line


def test_cores_to_read_are_never_rounded_down():
    four = [Node(cpus=4, gpus=0)]
    assert (
        schedule(ResourceConfig(view_cpus=1, worker_cpus=1), four, tokenize=False, data_cpus=1.0).concurrent
        == 2
    )
    assert (
        schedule(ResourceConfig(view_cpus=1, worker_cpus=1), four, tokenize=False, data_cpus=1.4).concurrent
        == 1
    )


def test_two_machines_that_are_each_too_small_do_not_make_one():
    piece = [("train", 3.0, 0.0)]
    assert count(piece, [Node(cpus=2, gpus=0), Node(cpus=2, gpus=0)]) == 0
    assert count(piece, [Node(cpus=4, gpus=0), Node(cpus=2, gpus=0)]) == 1
    assert count([("train", 1.0, 1.0)] * 2, [Node(cpus=8, gpus=1), Node(cpus=8, gpus=1)]) == 1


def test_machines_for_views_hold_no_workers_and_those_to_come_count():
    gpus = Node(cpus=8, gpus=4, stages=frozenset({"train"}), there=False)
    cpus = Node(cpus=3, gpus=0, stages=frozenset({"views"}), there=False)
    found = schedule(ResourceConfig(view_cpus=1), [Node(cpus=1, gpus=0), gpus, cpus], tokenize=False)
    assert found.concurrent == 3, "four GPUs, but three cores for views"


def test_what_never_fits_is_refused_with_the_arithmetic_in_a_line():
    with pytest.raises(UserError) as raised:
        schedule(ResourceConfig(worker_cpus=4), TWO_CORES, tokenize=False)
    assert "1 worker x 4 CPU" in raised.value.cause
    assert "2 CPU" in raised.value.cause
    assert "\n" not in raised.value.cause
    with pytest.raises(UserError) as raised:
        schedule(ResourceConfig(), TWO_CORES, tokenize=False, concurrent=2)
    assert "room for 1 trial at a time, and 2 were wanted" in raised.value.cause
    assert raised.value.remedy == "set --concurrent 1"
    with pytest.raises(UserError) as raised:
        schedule(ResourceConfig(), TWO_CORES, tokenize=False, data_cpus=1.5)
    assert "room for 0 trials" in raised.value.cause
    assert "2 CPU / 2.5 = 0.80" in raised.value.cause


def test_fewer_than_fit_can_be_wanted():
    found = schedule(ResourceConfig(), [Node(cpus=16, gpus=8)], tokenize=False, concurrent=3)
    assert found.concurrent == 3
    assert found.line.endswith("room for 8, 3 wanted; 3 at a time")


def test_a_trial_of_several_streams_counts_their_tokenizers_and_a_range_of_workers_is_refused():
    found = schedule(ResourceConfig(workers=2, streams=2), [Node(cpus=16, gpus=2)], tokenize=True)
    assert "2 workers" in found.line
    assert "2 tokenizers" in found.line
    with pytest.raises(UserError, match=r"resources\.workers=1\.\.2: trials side by side keep"):
        schedule(ResourceConfig(workers="1..2"), [Node(cpus=16, gpus=2)], tokenize=True)
