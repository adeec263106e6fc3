"""The Ray of one process: who can reach it, and what it leaves behind."""

import contextlib
import ipaddress
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import ray

from pipelines.cluster.joined import Door, knock
from pipelines.cluster.session import start_private

psutil = pytest.importorskip("psutil")  # Ray brings it.

# What somebody without the token runs, from the issue of a laptop in a café.
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
print("came in:", ray.get(ray.remote(lambda: "ran").remote()))
"""


def listening():
    """(Process, address, port) of every socket on which this process and those that it started listen."""
    parent = psutil.Process()
    for process in [parent, *parent.children(recursive=True)]:
        try:
            for each in process.net_connections(kind="tcp"):
                if each.status == psutil.CONN_LISTEN:
                    yield process.name(), ipaddress.ip_address(each.laddr.ip), each.laddr.port
        except psutil.NoSuchProcess:
            continue


def test_the_private_ray_listens_on_this_machine_only(ray_cluster):
    found = list(listening())
    assert len(found) >= 5
    for name, address, port in found:
        inner = getattr(address, "ipv4_mapped", None) or address
        assert inner.is_loopback, f"{name} listens on {address}:{port}"


def test_whoever_has_no_token_is_refused(ray_cluster):
    assert knock(ray.get_runtime_context().gcs_address) is Door.LOCKED
    dashboard = f"http://{ray._private.worker.global_worker.node.webui_url}"
    for request in ("/api/jobs/", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(dashboard + request, timeout=30)
        assert refused.value.code in (401, 403)


def test_the_token_is_this_users_secret(ray_cluster):
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_the_environment_is_as_before_at_the_end(monkeypatch):
    monkeypatch.setattr("ray.init", lambda **options: seen.append(dict(os.environ)))
    monkeypatch.setattr("ray.shutdown", lambda: None)  # Another test's Ray goes on.
    monkeypatch.setattr("pipelines.cluster.private._read_again", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PRINT_PATCH", raising=False)
    seen, before = [], dict(os.environ)
    with start_private(num_cpus=1):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.exists()
    assert dict(os.environ) == before
    assert not token.parent.exists()
    (during,) = seen
    assert during["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in during
    assert during["RAY_DEDUP_LOGS"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_strangers_script_does_not_come_in(ray_cluster, tmp_path, mode):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": mode, "HOME": str(tmp_path)}
    if mode == "token":
        environment["RAY_AUTH_TOKEN"] = "0" * 64
    command = [sys.executable, "-c", STRANGER, ray.get_runtime_context().gcs_address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stranger:
        with contextlib.suppress(subprocess.TimeoutExpired):  # Ray tries again and again.
            stranger.wait(timeout=45)
        stranger.kill()
        assert "came in" not in stranger.stdout.read()
    assert stranger.returncode != 0


def test_a_signal_to_the_drivers_process_group_does_not_reach_ray(ray_cluster):
    mine = os.getpgid(0)
    vital = [child for child in psutil.Process().children() if child.name() in ("raylet", "gcs_server")]
    assert len(vital) >= 2
    assert mine not in {os.getpgid(child.pid) for child in vital}
