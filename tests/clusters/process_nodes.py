"""Nodes that are processes, for Ray's autoscaler: growing_cluster.py uses them in place of a cloud."""

import json
import os
import subprocess

from agent_ports import announce, options, own_ports
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)


class Nodes(FakeMultiNodeProvider):
    """What Ray's autoscaler calls in place of a cloud: a node is one `ray start --block` with ports of its
    own.
    """

    def _create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        name = self._next_hex_node_id()
        kind, ports = tags[TAG_RAY_USER_NODE_TYPE], own_ports()
        announce(os.environ["GROWING_CLUSTER_SESSION"], name, ports)
        custom = {
            key: amount for key, amount in resources.items() if key not in ("CPU", "object_store_memory")
        }
        command = [
            "ray",
            "start",
            "--block",
            f"--address={self._gcs_address}",
            f"--num-cpus={resources['CPU']}",
            *options(ports),
        ]
        command += [
            f"--resources={json.dumps(custom)}",
            f"--object-store-memory={resources['object_store_memory']}",
            "--disable-usage-stats",
        ]
        names = {
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name,
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": kind,
        }
        process = subprocess.Popen(
            command, env={**os.environ, **names}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        fixed = {
            TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
            TAG_RAY_NODE_NAME: name,
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        }
        with self.lock:
            self._nodes[name] = {"tags": {**tags, **fixed}, "node": process}

    def _terminate_node(self, node):
        node["node"].terminate()
