"""Trainings over machines with addresses of their own: tests/clusters/machines.py says how, docs/clusters.md what it prints."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("machines.py")


@pytest.fixture(scope="module")
def own_networks():
    """Skips where a program cannot have a network namespace."""
    try:
        subprocess.run(["unshare", "--user", "--map-root-user", "--net", "ip", "link", "add", "name", "b", "type", "bridge"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")


def watch(what):
    with tempfile.TemporaryDirectory(prefix="beit-", ignore_cleanup_errors=True) as folder:  # Unix sockets have short names.
        command = [sys.executable, str(PROGRAM), what, f"{folder}/m"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("own_networks")
def test_two_machines_train_one_model_through_a_folder_that_both_see():
    done = watch("two")
    assert done.returncode == 0, done.stdout
    assert "workers on 10.77.0.11, 10.77.0.12" in done.stdout
    assert "the ledger: 1,984 samples settled = 31 steps x 64" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("own_networks")
def test_the_group_grows_when_a_machine_comes_and_shrinks_when_it_is_lost_and_every_sample_comes_once():
    done = watch("elastic")
    assert done.returncode == 0, done.stdout
    assert "started again, 2 workers: going on from step 4" in done.stdout
    assert "started again, 1 worker: going on from step 12" in done.stdout
    assert "every sample of every epoch was trained on once" in done.stdout
