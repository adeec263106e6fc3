"""What a cluster may grow to, from the message in which Ray's autoscaler tells it."""

from ray.core.generated import autoscaler_pb2

from pipelines.cluster import to_come
from pipelines.placement import Node

A100 = {"CPU": 96, "GPU": 8, "train": 1}


def message(*groups):
    config = autoscaler_pb2.ClusterConfig()
    for resources, most in groups:
        group = config.node_group_configs.add(max_count=most)
        for name, amount in resources.items():
            group.resources[name] = amount
    return config


def test_machines_that_are_there_are_not_counted_twice():
    alive = [Node(cpus=96, gpus=8, stages=frozenset({"train"})), Node(cpus=16, gpus=0)]
    config = message((A100, 4), ({"CPU": 16}, 3), ({"CPU": 0}, 1))
    expected = [Node(cpus=96, gpus=8, stages=frozenset({"train"}), there=False)] * 3 + [Node(cpus=16, gpus=0, there=False)] * 2
    assert to_come(config, alive) == expected


def test_the_same_machine_on_spot_and_on_demand_counts_once():
    assert len(to_come(message((A100, 4), (A100, 4)), [])) == 4


def test_where_nothing_scales_nothing_comes():
    assert to_come(None, [Node(cpus=2, gpus=0)]) == []


def test_machines_that_joined_by_hand_are_no_promise_of_more():
    # A cluster without node types lists its own machines as such, with their addresses and exact memory.
    mine = {"CPU": 8, "memory": 123456, "node:10.0.0.1": 1}
    assert to_come(message((mine, 1)), [Node(cpus=8, gpus=0)]) == []
