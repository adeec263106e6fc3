import importlib.metadata
import os
import shutil
import socket

from pipelines.cluster import scratch
from pipelines.tools.doctor import machine
from pipelines.tools.doctor.finding import Level


def only(findings):
    (finding,) = findings
    return finding


def test_versions_that_are_not_what_the_package_asks_for_are_named(monkeypatch):
    assert only(machine.versions()).level is Level.FINE
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.9.1" if name == "ray" else installed(name)
    )
    finding = only(machine.versions())
    assert finding.level is Level.PROBLEM
    assert "ray 2.9.1 is not ==2.60.*" in finding.what


def test_small_shared_memory_and_full_disks_are_told(tmp_path):
    assert only(machine.shared_memory(0.0, tmp_path)).level is Level.FINE
    assert only(machine.shared_memory(1e18, tmp_path)).level is Level.WARNING
    usage = os.statvfs(tmp_path)
    finding = only(machine.disk(tmp_path))
    assert f"{usage.f_bavail * usage.f_frsize / 2**30:.0f} GiB free" in finding.what


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1 << 30, "total": 100 << 30})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert only(machine.disk(tmp_path)).level is Level.PROBLEM


def test_where_rays_files_go_and_what_killed_commands_left_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "disk", lambda path: iter(()))
    monkeypatch.setattr(scratch, "SHORT_PLACES", (tmp_path,))
    long = tmp_path / ("x" * 50)
    long.mkdir()
    monkeypatch.setattr(scratch, "LONGEST_PLACE", len(str(tmp_path)))
    elsewhere = only(machine.temporary({"RAY_TMPDIR": str(long)}))
    assert elsewhere.level is Level.WARNING
    assert f"Ray's files go to {tmp_path}" in elsewhere.what
    left = tmp_path / "beit-dead"
    left.mkdir()
    (left / scratch.LOCK).write_text(socket.gethostname())
    told = only(machine.temporary({"RAY_TMPDIR": str(tmp_path)}))
    assert told.level is Level.WARNING
    assert "beit-dead" in told.what
    assert left.exists(), "an examination changes nothing"


def test_cores_are_those_of_the_containers_limit(monkeypatch):
    monkeypatch.setattr(machine, "cores_here", lambda: 1.5)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    assert next(machine.machine()).what.startswith("1.5 cores,")
