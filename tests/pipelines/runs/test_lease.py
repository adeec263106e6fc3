import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from beit.errors import UserError
from pipelines.runs import lease


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)


def left_behind(run, **values) -> None:
    """A lease as another driver left it."""
    (run / lease.LEASE_FILE).write_text(json.dumps({**lease._own(), "id": "another", **values}))


def test_a_run_has_one_driver_at_a_time(tmp_path):
    with lease.hold(str(tmp_path), print):
        with (
            pytest.raises(UserError, match=f"has a driver already: process {os.getpid()} on"),
            lease.hold(str(tmp_path), print),
        ):
            pass
        assert (tmp_path / lease.LEASE_FILE).exists(), "who was refused leaves the lease"
    assert not (tmp_path / lease.LEASE_FILE).exists()
    with lease.hold(str(tmp_path), print):
        pass


def test_a_dead_driver_of_this_machine_keeps_no_lease(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left_behind(tmp_path, pid=int(child.stdout))
    lines = []
    with lease.hold(str(tmp_path), lines.append):
        pass
    assert lines == [], "there is nothing to wait for"


def test_a_process_number_that_was_used_again_is_another_process(tmp_path):
    left_behind(tmp_path, born="long ago")
    with lease.hold(str(tmp_path), print):
        pass


def test_a_driver_on_another_machine_lives_as_long_as_its_lease_changes(tmp_path):
    left_behind(tmp_path, place="another", host="node7")
    lines = []
    with lease.hold(str(tmp_path), lines.append):
        pass
    assert "alive" in lines[0]
    assert "node7" in lines[0]
    left_behind(tmp_path, place="another", host="node7")
    command = (
        "import sys, time, json, pathlib\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "time.sleep(0.3)\n"
        "file.write_text(json.dumps({**json.loads(file.read_text()), 'renewals': 5}))"
    )
    other = subprocess.Popen([sys.executable, "-c", command, str(tmp_path / lease.LEASE_FILE)])
    with pytest.raises(UserError, match="on node7"), lease.hold(str(tmp_path), print):
        pass
    other.wait()


def test_a_lease_is_renewed_and_a_torn_one_is_none(tmp_path):
    (tmp_path / lease.LEASE_FILE).write_text('{"id": "ano')
    with lease.hold(str(tmp_path), print):
        first = json.loads((tmp_path / lease.LEASE_FILE).read_text())
        time.sleep(0.5)
        assert json.loads((tmp_path / lease.LEASE_FILE).read_text())["renewals"] > first["renewals"]


def _wait_for_ever(run):
    left_behind(run)
    threading.Event().wait(30)


def test_a_driver_whose_run_was_taken_over_ends(tmp_path):
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with lease.hold(str(tmp_path), print), pytest.raises(KeyboardInterrupt):
            _wait_for_ever(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10
    assert json.loads((tmp_path / lease.LEASE_FILE).read_text())["id"] == "another"
