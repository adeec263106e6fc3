"""The files for `ray up`: Ray's own validation, what the files promise, and for AWS the creation of nodes
against moto, which costs nothing.
"""

import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "clusters").glob("*.yaml"))


def load(path):
    return prepare_config(yaml.safe_load(path.read_text()))


def gpus(kind):
    return kind["resources"].get("GPU", 0)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def config(request):
    return load(request.param)


def test_the_three_clouds_are_there():
    assert [path.stem for path in FILES] == ["aws", "azure", "gcp"]


def test_ray_accepts_it(config):
    validate_config(config)


def test_nothing_but_control_on_the_head_and_nothing_is_paid_for_without_work(config):
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(kind["min_workers"] == 0 for kind in types.values())
    assert config["idle_timeout_minutes"] <= 10
    # Ray keeps nodes that have gone, and their disks, unless it is told not to; on Google's cloud only if it
    # is told to.
    assert config["provider"].get("cache_stopped_nodes", config["provider"]["type"] != "gcp") is False


def test_each_stage_has_its_kind_of_node_on_spot_first_and_on_demand(config):
    types = config["available_node_types"]
    for stage, has_gpu in {"views": False, "tokens": True, "train": True}.items():
        spot, fixed = types[f"{stage}-spot"], types[stage]
        assert spot["resources"] == fixed["resources"]
        assert spot["priority"] > fixed.get("priority", 0)
        assert bool(gpus(spot)) == has_gpu
        assert [tag for tag in ("tokens", "train") if tag in spot["resources"]] == (
            [stage] if has_gpu else []
        )
        assert is_spot(spot["node_config"])
        assert not is_spot(fixed["node_config"])
    assert gpus(types["train"]) > gpus(types["tokens"])
    assert config["max_workers"] >= max(kind["max_workers"] for kind in types.values())


def is_spot(node):
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        or node.get("azure_arm_parameters", {}).get("priority") == "Spot"
    )


def test_every_process_asks_for_a_token_and_the_dashboard_is_no_open_port(config):
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start


def test_a_stopped_job_has_time_for_a_last_checkpoint(config):
    waits = [option for option in config["docker"]["run_options"] if "RAY_JOB_STOP_WAIT_TIME_S=" in option]
    assert float(waits[0].partition("=")[2]) >= 60


def test_no_secret_is_in_the_files():
    for path in (ROOT / "clusters").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "PRIVATE KEY" not in text
            assert "AKIA" not in text


def test_the_image_has_the_ray_that_the_package_pins():
    pinned = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
    ).partition("==")[2]
    assert f"FROM rayproject/ray:{pinned}-py311-gpu" in (ROOT / "clusters" / "Dockerfile").read_text()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(
        line.startswith("ray[") and line.endswith(f"=={pinned.rpartition('.')[0]}.*") for line in dependencies
    )


def test_aws_bootstraps_and_creates_a_head_and_every_kind_of_node(monkeypatch, tmp_path):
    """Against moto: every key of `node_config` passes boto3's own validation of `run_instances`."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    config = load(ROOT / "clusters" / "aws.yaml")
    region = config["provider"]["region"]
    with mock_aws():
        iam = boto3.client("iam", region)
        iam.create_instance_profile(InstanceProfileName="beit")
        image = boto3.client("ec2", region).describe_images()["Images"][0]["ImageId"]
        for kind in config["available_node_types"].values():
            assert kind["node_config"]["ImageId"] == "AMI", (
                "Ray's own default has a driver that is years too old"
            )
            kind["node_config"]["ImageId"] = image
        ready = aws.bootstrap_aws(config)
        group = ready["available_node_types"]["head"]["node_config"]["SecurityGroupIds"][0]
        rules = boto3.client("ec2", region).describe_security_groups(GroupIds=[group])["SecurityGroups"][0][
            "IpPermissions"
        ]
        from_outside = [rule for rule in rules if rule["IpRanges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
        provider = AWSNodeProvider(ready["provider"], "beit")
        for name, kind in ready["available_node_types"].items():
            tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_NODE_NAME: name, TAG_RAY_USER_NODE_TYPE: name}
            provider.create_node(kind["node_config"], tags, 1)
        instances = [
            i
            for r in boto3.client("ec2", region).describe_instances()["Reservations"]
            for i in r["Instances"]
        ]
        found = sorted((i["InstanceType"], i.get("InstanceLifecycle", "on demand")) for i in instances)
        assert found == sorted(
            [("m7i.xlarge", "on demand")]
            + [
                (kind, market)
                for kind in ("c7i.4xlarge", "g6.xlarge", "p4d.24xlarge")
                for market in ("spot", "on demand")
            ]
        )
        assert all(
            instance["IamInstanceProfile"]["Arn"].endswith("instance-profile/beit") for instance in instances
        )
