import errno
import sqlite3

import pyarrow as pa
import pytest
from mlflow.exceptions import MlflowException
from ray.exceptions import RayActorError, RayTaskError

from pipelines.command_line.run import run_program

FULL = OSError(errno.ENOSPC, "No space left on device", "/runs/a")
FORBIDDEN = PermissionError(errno.EACCES, "Permission denied", "/data")


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (FULL, "No space left on device: /runs/a", "free"),
        (FORBIDDEN, "Permission denied: /data", "permission"),
        (ConnectionError("the server hung up"), "the server hung up", "--debug"),
        (
            pa.ArrowException("a bucket answered 503\nand more"),
            "ArrowException: a bucket answered",
            "--debug",
        ),
        (RayActorError(), "RayActorError: The actor", "--debug"),
        (MlflowException("the schema is old"), "MlflowException: the schema is old", "--debug"),
        (sqlite3.OperationalError("database is locked"), "OperationalError: database is", "--debug"),
        (MemoryError(), "not enough memory", "memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_world_does_is_told_in_two_lines_and_is_no_mistake_of_a_user(error, cause, remedy, capsys):
    def command(arguments, debug):
        raise error

    with pytest.raises(SystemExit) as left:
        run_program(command, [])
    first, second = capsys.readouterr().err.splitlines()
    assert left.value.code == 1
    assert first.startswith("failed: ")
    assert cause in first
    assert remedy in second
    with pytest.raises(type(error)):
        run_program(command, ["--debug"])


def in_a_task(error):
    """The same, as Ray hands it on from a task."""
    return RayTaskError("read", "a traceback", error).as_instanceof_cause()


def test_a_task_of_rays_is_told_by_what_it_raised(capsys):
    def command(arguments, debug):
        raise in_a_task(FULL)

    with pytest.raises(SystemExit):
        run_program(command, [])
    assert capsys.readouterr().err.startswith("failed: No space left on device: /runs/a\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), in_a_task(KeyError("name"))])
def test_a_mistake_of_the_code_keeps_its_traceback(error):
    def command(arguments, debug):
        raise error

    with pytest.raises(type(error)):
        run_program(command, [])
