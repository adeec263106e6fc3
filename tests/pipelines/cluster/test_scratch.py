"""The folder of a driver's Ray: where it lies, and what becomes of those of drivers that were killed."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beit.errors import UserError
from pipelines.cluster import scratch

# A driver with a process of its own, which has a file of the folder open and forgets its parent.
DRIVER = """
import subprocess, sys, time
from pipelines.cluster import scratch
with scratch.folder() as folder:
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(["sleep", "600"], stdout=log, start_new_session=True)
    print(folder, child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The folder of a driver that was killed, and the process that it left."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "LONGEST_PLACE", 1000)
    code = DRIVER.replace("with scratch.folder", "scratch.LONGEST_PLACE = 1000\nwith scratch.folder")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        folder, child = driver.stdout.readline().split()
        assert scratch.abandoned(tmp_path) == [], "its driver lives"
        driver.kill()
    yield Path(folder), int(child)
    with_child = Path(f"/proc/{child}")
    if with_child.exists():
        os.kill(int(child), signal.SIGKILL)


def test_the_next_driver_removes_what_a_killed_one_left(killed, tmp_path):
    folder, child = killed
    assert scratch.abandoned(tmp_path) == [folder]
    assert scratch.users([folder]) == [child]
    with scratch.folder() as mine:
        assert mine.parent == tmp_path
        assert not folder.exists()
        assert mine.exists()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}/fd").exists() and any(Path(f"/proc/{child}/fd").iterdir()):
        assert time.monotonic() < deadline, "the process was left alive"
        time.sleep(0.05)
    assert not mine.exists()


@pytest.mark.parametrize("change", ["another machine", "no lock", "not ours"])
def test_what_is_not_surely_dead_stays(killed, tmp_path, monkeypatch, change):
    folder, _ = killed
    if change == "another machine":
        (folder / scratch.LOCK).write_text("elsewhere")
    elif change == "no lock":
        (folder / scratch.LOCK).unlink()
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert scratch.abandoned(tmp_path) == []
    with scratch.folder():
        assert folder.exists()


def test_a_folder_is_closed_to_other_users_and_its_sockets_have_short_paths(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with scratch.folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder) + scratch.SOCKET) <= scratch.LONGEST_SOCKET


def test_where_paths_are_too_long_for_sockets_another_place_is_taken(monkeypatch, tmp_path):
    long = tmp_path / "a-job-folder-of-the-scheduler-with-a-long-name"
    long.mkdir()
    assert scratch.place({"RAY_TMPDIR": str(long)}) == Path("/tmp")
    monkeypatch.setattr(scratch, "SHORT_PLACES", ())
    with pytest.raises(UserError, match=f"at most {scratch.LONGEST_PLACE} characters") as refused:
        scratch.place({"RAY_TMPDIR": str(long)})
    assert "TMPDIR" in refused.value.remedy


def test_a_place_of_fit_length_is_taken_as_it_is():
    assert scratch.place({"RAY_TMPDIR": "/var/tmp"}) == Path("/var/tmp")
