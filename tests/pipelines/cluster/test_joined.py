"""What a cluster says at its door, before Ray tries to join it."""

import socket
import time

import pytest
import ray

from beit.errors import UserError
from pipelines.cluster import joined, session
from pipelines.cluster.joined import Door, knock, named


@pytest.fixture
def silent_port():
    """A port that takes connections, and nobody behind it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "ray://127.0.0.1:9/space"])
def test_a_cluster_that_is_gone_is_told_at_once(monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(UserError) as refused, session.start():
        pass
    assert time.monotonic() - begun < 10
    assert f"RAY_ADDRESS={address} cannot be reached: nobody answers" in refused.value.cause
    assert "unset RAY_ADDRESS" in refused.value.remedy
    assert "\n" not in refused.value.cause + refused.value.remedy


def test_auto_is_the_cluster_that_ray_remembers_alive_or_not(monkeypatch):
    remembered = "ray._private.services.canonicalize_bootstrap_address_or_die"
    monkeypatch.setattr(remembered, lambda address: "127.0.0.1:9")
    with pytest.raises(UserError, match="RAY_ADDRESS=auto cannot be reached: nobody answers"):
        knock("auto")

    def none(address):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(remembered, none)
    with pytest.raises(UserError, match="no Ray runs on this machine"):
        knock("auto")


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port"])
def test_an_address_without_host_or_port_is_told(address):
    with pytest.raises(UserError, match="it is no HOST:PORT"):
        knock(address)


def test_a_port_without_ray_behind_it_is_told(monkeypatch, silent_port):
    monkeypatch.setattr(joined, "ANSWER_SECONDS", 0.5)
    with pytest.raises(UserError, match="gives no answer"):
        knock(f"127.0.0.1:{silent_port}")


def test_a_cluster_without_tokens_is_joined_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **how: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # Another test's Ray goes on.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for door, lines in ((Door.OPEN, 1), (Door.LOCKED, 0)):
        monkeypatch.setattr(joined, "knock", lambda address, door=door: door)
        with session.start():
            pass
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
        assert all("127.0.0.1:6379 asks for no token" in line for line in told)


def test_the_address_local_names_no_cluster():
    assert named({"RAY_ADDRESS": "local"}) == named({"RAY_ADDRESS": ""}) == named({}) == ""
    assert named({"RAY_ADDRESS": "auto"}) == "auto"
