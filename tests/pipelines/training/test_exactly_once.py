"""Every sample of every epoch exactly once, whatever dies in between. Counted by weights, not by the ledger
itself.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("counting_run.py")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("counting_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("shards")
    program.write_shards(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("tokenizer")
    program.write_tokenizer(folder)
    return str(folder)


def run(shards, tokenizer, out, *options):
    command = [sys.executable, str(PROGRAM), shards, tokenizer, str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=840, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_worker_is_killed_before_the_first_checkpoint_then_the_driver_and_another_number_of_workers_goes_on(
    program, shards, tokenizer, tmp_path
):
    killed = run(shards, tokenizer, tmp_path, "--workers", "2", "--crash", "2", "--die", "10")
    assert killed.returncode == -9, killed.stdout + killed.stderr
    assert (tmp_path / "crashed-2").exists()
    done = run(shards, tokenizer, tmp_path, "--workers", "1", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    program.assert_exactly_once(shards, tokenizer, tmp_path, missing=3 * 186 % 24)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_streams_with_two_workers_and_one_a_worker_killed_after_a_checkpoint(
    program, shards, tokenizer, tmp_path
):
    done = run(shards, tokenizer, tmp_path, "--workers", "3", "--streams", "2", "--crash", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "crashed-9").exists()
    program.assert_exactly_once(shards, tokenizer, tmp_path, missing=3 * 186 % 24)
