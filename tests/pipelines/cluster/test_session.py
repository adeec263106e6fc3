"""Starting and joining Ray, and what runs beside the driver or where workers train."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import ray
from ray.exceptions import AuthenticationError

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.cluster.joined import Door
from pipelines.cluster.private import STARTS
from pipelines.cluster.session import (
    run_where_workers_train,
    start,
    start_beside_driver,
    start_private,
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("nobody answers\nat all"), "127.0.0.1:1 cannot be reached: nobody answers"),
        (AuthenticationError("no token was found"), "127.0.0.1:1 cannot be joined: no token was found"),
        (RuntimeError("\nVersion mismatch: 2.9.0"), "127.0.0.1:1 cannot be joined: Version mismatch: 2.9.0"),
    ],
)
def test_a_cluster_that_does_not_let_us_in_is_told_in_one_line(monkeypatch, error, told):
    def refuse(**how):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("pipelines.cluster.joined.knock", lambda address: Door.LOCKED)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError) as refused, start():
        pass
    assert told in refused.value.cause
    assert "\n" not in refused.value.cause


@pytest.mark.parametrize("late", [2, STARTS])
def test_a_machine_that_is_too_busy_to_start_ray_is_given_more_than_one_chance(monkeypatch, late):
    tried = []

    def start(**options):
        tried.append(options["_temp_dir"])
        if len(tried) <= late:
            raise Exception(
                "The current node timed out during startup. This could happen because some of the raylet "
                "failed to startup"
            )

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # Another test's Ray goes on.
    if late < STARTS:
        with start_private(num_cpus=1, debug=True):
            pass
    else:
        with (
            pytest.raises(JobFailedError, match="3 times"),
            start_private(num_cpus=1, debug=True),
        ):
            pass
    assert len(set(tried)) == len(tried) == min(late + 1, STARTS)


@pytest.mark.parametrize(
    ("interrupt", "sent", "raised"),
    [
        (signal.default_int_handler, signal.SIGTERM, TerminatedError),
        (signal.SIG_IGN, signal.SIGTERM, TerminatedError),  # Started by a script's `… &`.
        (signal.default_int_handler, signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_a_job_that_is_ended_cleans_up_and_says_by_which_signal(monkeypatch, interrupt, sent, raised):
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", lambda: cleaned.append("Ray"))
    cleaned, before = [], signal.getsignal(signal.SIGTERM)

    def job():
        with start_private(num_cpus=1):
            try:
                signal.raise_signal(sent)
            finally:
                cleaned.append("job")

    outside = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            job()
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (before, interrupt)
    finally:
        signal.signal(signal.SIGINT, outside)
    assert stop.type is raised
    assert cleaned == ["job", "Ray"]


def test_another_failure_of_ray_is_not_tried_again(monkeypatch):
    tried = []

    def start(**options):
        tried.append(options)
        raise RuntimeError("no")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # Another test's Ray goes on.
    with pytest.raises(RuntimeError, match=r"^no$"), start_private(num_cpus=1, debug=True):
        pass
    assert len(tried) == 1


class Adder:
    """An actor with much to remember, as the dispatcher of a large data set has."""

    def __init__(self, numbers):
        self.numbers = numbers

    def total(self):
        return int(self.numbers.sum())

    def process(self):
        return os.getpid()


def test_an_actor_beside_the_driver_begins_again_with_its_arguments_however_large(ray_cluster):
    import ray

    actor = start_beside_driver(Adder, np.ones(100_000, np.int64), max_restarts=-1, max_task_retries=-1)
    first = ray.get(actor.process.remote())
    references = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    while any(count["submitted"] for count in references().values()):
        time.sleep(0.05)  # Ray has not yet forgotten what it means to forget.
    os.kill(first, signal.SIGKILL)
    assert ray.get(actor.total.remote(), timeout=60) == 100_000
    assert ray.get(actor.process.remote()) != first
    ray.kill(actor)


def test_where_workers_train_patience_is_for_the_place_and_not_for_the_work(ray_cluster):
    import ray

    other = ray.remote(Adder).options(num_cpus=2).remote(np.ones(1, np.int64))
    assert ray.get(other.total.remote()) == 1
    with pytest.raises(UserError, match=r"no core free for 0\.5 s"):
        run_where_workers_train(os.getpid, patience=0.5)
    ray.kill(other)
    asked = time.monotonic()
    run_where_workers_train(os.getpid)
    # Enough for a place, however busy the machine. The work lasts until it is over.
    patience = 2 + 2 * (time.monotonic() - asked)
    over = time.time() + patience + 0.2
    assert run_where_workers_train(lambda: time.sleep(over - time.time()), patience=patience) is None
    assert time.time() >= over


def test_what_is_refused_where_workers_train_is_told_as_it_is(ray_cluster):
    def refuse():
        raise UserError("no images are there", "give others")

    with pytest.raises(UserError) as refused:
        run_where_workers_train(refuse)
    assert (refused.value.cause, refused.value.remedy) == ("no images are there", "give others")


def test_a_process_whose_standard_error_is_closed_does_its_work_all_the_same():
    work = "from pipelines.cluster.session import without_stderr\nwith without_stderr(): print('done')"
    # Not in this process: its other threads may open files meanwhile, and would get the free number.
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, work],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_tasks_that_ray_does_again_are_not_announced(monkeypatch, capsys):
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # Another test's Ray goes on.
    monkeypatch.setattr("pipelines.cluster.private._read_again", lambda: None)
    shown = []
    monkeypatch.setattr("ray._private.worker.print_to_stdstream", lambda batch, **how: shown.append(batch))
    retried = (
        "Task MapWorker(MapBatches(Tokenize)).submit failed. There are infinite retries remaining, so the "
        "task will be retried. Error: The actor is temporarily unavailable"
    )
    for debug in (False, True):
        with start_private(num_cpus=1, debug=debug):
            for line in (retried, "another message"):
                ray._private.worker.print_to_stdstream(
                    {"lines": [line], "pid": "raylet"}, ignore_prefix=False
                )
    assert [batch["lines"] for batch in shown] == [["another message"], [retried], ["another message"]]
