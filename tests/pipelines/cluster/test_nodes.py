"""The machines of a cluster, and those that an autoscaler may add."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from beit.errors import UserError
from pipelines.cluster.node_types import NodeType, node_types_in, node_types_of
from pipelines.cluster.nodes import cores_here, local_path_warnings, nodes_to_come, types_of_cluster
from pipelines.cluster.placement import Node

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
    assert nodes_to_come(types((A100, 4), ({"CPU": 16}, 3), ({"CPU": 0}, 0)), alive) == expected


def test_the_same_machine_on_spot_and_on_demand_counts_once():
    assert len(nodes_to_come(types((A100, 4), (A100, 4)), [])) == 4


def test_a_cluster_never_has_more_machines_than_all_its_types_together_may():
    train, views = (
        Node(cpus=96, gpus=8, stages=frozenset({"train"}), there=False),
        Node(cpus=16, gpus=0, there=False),
    )
    most = replace(types(({"CPU": 16}, 16), (A100, 4)), most=6)
    assert Counter(nodes_to_come(most, [])) == {train: 4, views: 2}
    assert Counter(nodes_to_come(most, [Node(cpus=0, gpus=0), replace(views, there=True)])) == {
        train: 4,
        views: 1,
    }, "the head is not counted"
    assert Counter(nodes_to_come(replace(most, most=2), [])) == {train: 1, views: 1}, "every stage has one"


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
    assert not types_of_cluster()
    assert nodes_to_come(types_of_cluster(), [Node(cpus=2, gpus=0)]) == []


def test_a_heads_file_says_them_and_its_environment_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "{max_workers: 7, head_node_type: head, available_node_types: {"
        "head: {resources: {CPU: 0}, node_config: {InstanceType: m7i.xlarge}}, "
        "train: {max_workers: 2, resources: {CPU: 8}, node_config: {}}, views: {resources: {CPU: 4}}}}"
    )
    assert types_of_cluster().kinds == (
        NodeType(name="train", resources={"CPU": 8}, max_workers=2),
        NodeType(name="views", resources={"CPU": 4}, max_workers=7),  # as Ray fills it in
    )
    assert (types_of_cluster().most, types_of_cluster().head.machine) == (7, "m7i.xlarge")
    views = {"views": {"max_workers": 3, "resources": {"CPU": 16}}}
    monkeypatch.setenv("BEIT_NODE_TYPES", json.dumps(views))
    assert types_of_cluster() == node_types_of(views)
    for wrong in ("{not: [closed", str(tmp_path / "none"), '{"views": 3}'):
        monkeypatch.setenv("BEIT_NODE_TYPES", wrong)
        with pytest.raises(UserError, match="names no node types"):
            types_of_cluster()


def test_local_paths_are_pointed_out_where_there_are_other_machines():
    paths = {"data.train": "/images", "output.root": "s3://bucket/runs"}
    assert local_path_warnings([Node(cpus=2, gpus=0)], paths) == []
    (line,) = local_path_warnings([Node(cpus=2, gpus=0)] * 3, paths)
    assert line.startswith("warning: 3 machines, and data.train is the local path /images")
