"""The Kubernetes manifests: pods and claims by Kubernetes' published schemas; what is KubeRay's own by the
rules below.

KubeRay's schemas come in no package, so its part is checked for: kind and version, token authentication, the
in-tree autoscaler in version 2, a head without cores for work and without a public service, groups that start
at zero, limits equal to requests, the tags of the GPU groups, and a volume of memory behind /dev/shm.
"""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "clusters" / "kuberay"
KUBERNETES = "1.31"


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture(params=["raycluster.yaml", "rayjob.yaml"])
def cluster(request):
    """The specification of the cluster."""
    document = load(request.param)
    assert document["apiVersion"] == "ray.io/v1"
    assert document["kind"] == {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}[request.param]
    return document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_claim_is_one_that_many_pods_can_write():
    claim = load("storage.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_pods_are_valid_and_have_limits_equal_to_their_requests(cluster):
    for group in groups(cluster):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert pod["spec"]["restartPolicy"] == "Never"
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert (
                volumes[mounts["/mnt/beit"]]["persistentVolumeClaim"]["claimName"]
                == load("storage.yaml")["metadata"]["name"]
            )


def test_processes_ask_for_a_token_and_the_head_controls_only(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["serviceType"] == "ClusterIP"


def test_groups_grow_from_nothing_and_carry_the_tags_of_their_stages(cluster):
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        container = group["template"]["spec"]["containers"][0]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        # A string of JSON within a string of the shell, as `ray start --resources` gets it.
        tags = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        assert tags == ({group["groupName"]: 1} if has_gpu else {})


def test_the_version_of_ray_is_the_pinned_one(cluster):
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in constraints


def test_a_job_leaves_nothing_behind_and_is_not_started_twice():
    spec = load("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] == 0
    assert "working_dir" in yaml.safe_load(spec["runtimeEnvYAML"])


def test_the_head_tells_drivers_what_its_groups_may_grow_to(cluster):
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    told = json.loads(
        next(variable["value"] for variable in container["env"] if variable["name"] == "BEIT_NODE_TYPES")
    )
    expected = {}
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"])}
        if "nvidia.com/gpu" in limits:
            resources |= {"GPU": int(limits["nvidia.com/gpu"]), group["groupName"]: 1}
        expected[group["groupName"]] = {"max_workers": group["maxReplicas"], "resources": resources}
    assert told == expected
