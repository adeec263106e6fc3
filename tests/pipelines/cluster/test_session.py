"""What a cluster may grow to, from the node types that its head knows."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.exceptions import AuthenticationError

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.cluster.node_types import NodeType, node_types_in, node_types_of
from pipelines.cluster.placement import Node
from pipelines.cluster.session import (
    STARTS,
    cores_here,
    local_paths,
    node_types,
    run_where_workers_train,
    start,
    start_beside_driver,
    start_private,
    to_come,
)

CLUSTERS = Path(__file__).resolve().parents[3] / "clusters"
A100 = {"CPU": 96, "GPU": 8, "train": 1}


def types(*kinds):
    return node_types_of(
        {
            str(number): {"resources": resources, "max_workers": most}
            for number, (resources, most) in enumerate(kinds)
        }
    )


def test_machines_that_are_there_are_not_counted_twice():
    alive = [Node(cpus=96, gpus=8, stages=frozenset({"train"})), Node(cpus=16, gpus=0)]
    expected = [Node(cpus=96, gpus=8, stages=frozenset({"train"}), there=False)] * 3 + [
        Node(cpus=16, gpus=0, there=False)
    ] * 2
    assert to_come(types((A100, 4), ({"CPU": 16}, 3), ({"CPU": 0}, 0)), alive) == expected


def test_the_same_machine_on_spot_and_on_demand_counts_once():
    assert len(to_come(types((A100, 4), (A100, 4)), [])) == 4


def test_a_cluster_never_has_more_machines_than_all_its_types_together_may():
    train, views = (
        Node(cpus=96, gpus=8, stages=frozenset({"train"}), there=False),
        Node(cpus=16, gpus=0, there=False),
    )
    most = replace(types(({"CPU": 16}, 16), (A100, 4)), most=6)
    assert Counter(to_come(most, [])) == {train: 4, views: 2}
    assert Counter(to_come(most, [Node(cpus=0, gpus=0), replace(views, there=True)])) == {
        train: 4,
        views: 1,
    }, "the head is not counted"
    assert Counter(to_come(replace(most, most=2), [])) == {train: 1, views: 1}, "every stage has one"


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("most", [None, 5])
def test_what_a_file_leaves_out_is_what_ray_fills_in(cloud, most):
    content = yaml.safe_load((CLUSTERS / f"{cloud}.yaml").read_text())
    content.pop("max_workers")
    for kind in content["available_node_types"].values():
        kind.pop("max_workers", None)
    if most:
        content["max_workers"] = most
    filled = prepare_config(content)
    found = node_types_in(content)
    assert {kind.name: kind.max_workers for kind in found.kinds} == {
        name: kind["max_workers"] for name, kind in filled["available_node_types"].items() if name != "head"
    }
    assert found.most == filled["max_workers"]


def test_a_container_has_the_cores_of_its_limit(tmp_path):
    limit = tmp_path / "cpu.max"
    everything = cores_here(limit)
    assert everything >= 1
    limit.write_text("50000 100000\n")
    assert cores_here(limit) == 0.5
    limit.write_text("max 100000\n")
    assert cores_here(limit) == everything


def test_where_nothing_scales_nothing_comes(monkeypatch, tmp_path):
    monkeypatch.delenv("BEIT_NODE_TYPES", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not node_types()
    assert to_come(node_types(), [Node(cpus=2, gpus=0)]) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("nobody answers\nat all"), "127.0.0.1:1 cannot be reached: nobody answers"),
        (AuthenticationError("no token was found"), "127.0.0.1:1 cannot be joined: no token was found"),
        (RuntimeError("\nVersion mismatch: 2.9.0"), "127.0.0.1:1 cannot be joined: Version mismatch: 2.9.0"),
    ],
)
def test_a_cluster_that_does_not_let_us_in_is_told_in_one_line(monkeypatch, error, told):
    def refuse(**how):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError) as refused, start():
        pass
    assert told in refused.value.cause
    assert "\n" not in refused.value.cause


def test_a_heads_file_says_them_and_its_environment_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "{max_workers: 7, head_node_type: head, available_node_types: {"
        "head: {resources: {CPU: 0}, node_config: {InstanceType: m7i.xlarge}}, "
        "train: {max_workers: 2, resources: {CPU: 8}, node_config: {}}, views: {resources: {CPU: 4}}}}"
    )
    assert node_types().kinds == (
        NodeType(name="train", resources={"CPU": 8}, max_workers=2),
        NodeType(name="views", resources={"CPU": 4}, max_workers=7),  # as Ray fills it in
    )
    assert (node_types().most, node_types().head.machine) == (7, "m7i.xlarge")
    views = {"views": {"max_workers": 3, "resources": {"CPU": 16}}}
    monkeypatch.setenv("BEIT_NODE_TYPES", json.dumps(views))
    assert node_types() == node_types_of(views)
    for wrong in ("{not: [closed", str(tmp_path / "none"), '{"views": 3}'):
        monkeypatch.setenv("BEIT_NODE_TYPES", wrong)
        with pytest.raises(UserError, match="names no node types"):
            node_types()


@pytest.mark.parametrize("late", [2, STARTS])
def test_a_machine_that_is_too_busy_to_start_ray_is_given_more_than_one_chance(monkeypatch, tmp_path, late):
    tried = []

    def start(**options):
        tried.append(options["_temp_dir"])
        if len(tried) <= late:
            raise Exception(
                "The current node timed out during startup. This could happen because some of the raylet "
                "failed to startup"
            )

    monkeypatch.setattr("ray.init", start)
    if late < STARTS:
        with start_private(num_cpus=1, folder=tmp_path, debug=True):
            pass
    else:
        with (
            pytest.raises(JobFailedError, match="3 times"),
            start_private(num_cpus=1, folder=tmp_path, debug=True),
        ):
            pass
    assert len(set(tried)) == len(tried) == min(late + 1, STARTS)


@pytest.mark.parametrize(
    ("interrupt", "sent", "raised"),
    [
        (signal.default_int_handler, signal.SIGTERM, TerminatedError),
        (signal.SIG_IGN, signal.SIGTERM, TerminatedError),  # Started by a script's `… &`.
        (signal.default_int_handler, signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_a_job_that_is_ended_cleans_up_and_says_by_which_signal(
    monkeypatch, tmp_path, interrupt, sent, raised
):
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", lambda: cleaned.append("Ray"))
    cleaned, before = [], signal.getsignal(signal.SIGTERM)

    def job():
        with start_private(num_cpus=1, folder=tmp_path):
            try:
                signal.raise_signal(sent)
            finally:
                cleaned.append("job")

    outside = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            job()
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (before, interrupt)
    finally:
        signal.signal(signal.SIGINT, outside)
    assert stop.type is raised
    assert cleaned == ["job", "Ray"]


def test_local_paths_are_pointed_out_where_there_are_other_machines():
    paths = {"data.train": "/images", "output.root": "s3://bucket/runs"}
    assert local_paths([Node(cpus=2, gpus=0)], paths) == []
    (line,) = local_paths([Node(cpus=2, gpus=0)] * 3, paths)
    assert line.startswith("warning: 3 machines, and data.train is the local path /images")


def test_another_failure_of_ray_is_not_tried_again(monkeypatch, tmp_path):
    tried = []

    def start(**options):
        tried.append(options)
        raise RuntimeError("no")

    monkeypatch.setattr("ray.init", start)
    with pytest.raises(RuntimeError, match=r"^no$"), start_private(num_cpus=1, folder=tmp_path, debug=True):
        pass
    assert len(tried) == 1


class Adder:
    """An actor with much to remember, as the dispatcher of a large data set has."""

    def __init__(self, numbers):
        self.numbers = numbers

    def total(self):
        return int(self.numbers.sum())

    def process(self):
        return os.getpid()


def test_an_actor_beside_the_driver_begins_again_with_its_arguments_however_large(ray_cluster):
    import ray

    actor = start_beside_driver(Adder, np.ones(100_000, np.int64), max_restarts=-1, max_task_retries=-1)
    first = ray.get(actor.process.remote())
    references = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    while any(count["submitted"] for count in references().values()):
        time.sleep(0.05)  # Ray has not yet forgotten what it means to forget.
    os.kill(first, signal.SIGKILL)
    assert ray.get(actor.total.remote(), timeout=60) == 100_000
    assert ray.get(actor.process.remote()) != first
    ray.kill(actor)


def test_where_workers_train_patience_is_for_the_place_and_not_for_the_work(ray_cluster):
    import ray

    other = ray.remote(Adder).options(num_cpus=2).remote(np.ones(1, np.int64))
    assert ray.get(other.total.remote()) == 1
    with pytest.raises(UserError, match=r"no core free for 0\.5 s"):
        run_where_workers_train(os.getpid, patience=0.5)
    ray.kill(other)
    asked = time.monotonic()
    run_where_workers_train(os.getpid)
    patience = 5 + 5 * (
        time.monotonic() - asked
    )  # Enough for a place, however busy the machine, and not for the work as well.
    assert run_where_workers_train(functools.partial(time.sleep, patience), patience=patience) is None


def test_a_process_whose_standard_error_is_closed_does_its_work_all_the_same():
    work = "from pipelines.cluster.session import without_stderr\nwith without_stderr(): print('done')"
    # Not in this process: its other threads may open files meanwhile, and would get the free number.
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, work],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
