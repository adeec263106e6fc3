"""Trainings over machines with addresses of their own: tests/clusters/machines.py says how,
docs/log/clusters.md what it prints.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("machines.py")


@pytest.fixture(scope="module")
def own_networks():
    """Skip the tests if programs cannot have their own namespaces."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "nothing", "nowhere"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no network namespaces here: {done.stderr}")


@pytest.fixture
def folder(own_networks):
    with tempfile.TemporaryDirectory(
        prefix="beit-", ignore_cleanup_errors=True
    ) as folder:  # Unix sockets have short names.
        yield f"{folder}/m"


def watch(what, folder, *options):
    """The output of the program, which has ended."""
    command = [sys.executable, str(PROGRAM), what, folder, *options]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_machines_train_one_model_through_a_folder_that_both_see(folder):
    text = watch("two", folder, "--data.scenes", "384", "--epochs", "1", "--optim.warmup-steps", "2")
    assert "workers on 10.77.0.11, 10.77.0.12" in text
    assert "the ledger: 384 samples settled = 6 steps x 64; 1 epochs complete" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_group_grows_when_a_machine_comes_and_shrinks_when_it_is_lost_and_every_sample_comes_once(folder):
    text = watch("elastic", folder)
    assert "started again, 2 workers: continuing from step 4" in text
    assert "started again, 1 worker: continuing from step 12" in text
    assert "every sample of every epoch was trained on once" in text


def test_nothing_of_the_machines_outlives_a_caller_that_is_killed(folder):
    program = [sys.executable, str(PROGRAM), "two", folder]
    caller = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({program})"])
    try:
        wait_until(lambda: any("ray start" in command for command in commands_with(folder)))
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not commands_with(folder))


def wait_until(reached, limit=120):
    deadline = time.monotonic() + limit
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def commands_with(text):
    """The commands of all processes in which a text is found."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            command = (
                Path("/proc", entry, "cmdline").read_text().replace("\0", " ") if entry.isdigit() else ""
            )
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found
