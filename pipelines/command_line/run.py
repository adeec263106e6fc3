"""Run a command: errors in two lines, exit codes, output that appears line by line. Knows no job."""

from __future__ import annotations

import getpass
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.command_line.world import told
from pipelines.redaction import redacted_output, refuse_secrets

Command = Callable[[list[str], bool], None]
"""(arguments behind the command's name, whether `--debug` was among them) -> None. Reports mistakes
by `UserError`."""


def run_program(command: Command, arguments: Sequence[str] | None = None) -> None:
    """Run a command as a program.

    Exits with 0, with 1 after a failure, 2 after a mistake of the user's, 130 after Ctrl-C, 143 after
    SIGTERM.

    Args:
        command: What to run.
        arguments: Those behind the command's name. None: the program's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file is to show each line when it is printed, as a terminal does.
        sys.stdout.reconfigure(line_buffering=True)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        with redacted_output():
            _run(command, [argument for argument in arguments if argument != "--debug"], debug)
    except BrokenPipeError:
        # Whoever read the output has stopped (`| head`). What is still unwritten goes nowhere, or the
        # interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _run(command: Command, arguments: list[str], debug: bool) -> None:
    try:
        refuse_secrets(arguments)
        _check_home()
        command(arguments, debug)
    except UserError as error:
        if debug:
            raise
        print(_as_typed(f"error: {error.cause}\n       {error.remedy}"), file=sys.stderr)
        sys.exit(2)
    except JobFailedError as error:
        if debug:
            raise
        print(_as_typed(f"failed: {error.cause}\n        {error.remedy}"), file=sys.stderr)
        sys.exit(1)
    except TerminatedError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        raise
    except Exception as error:
        found = None if debug else told(error)
        if found is None:
            raise
        print(_as_typed(f"failed: {found[0]}\n        {found[1]}"), file=sys.stderr)
        sys.exit(1)


def _check_home() -> None:
    """Refuse to start for a user without a home folder, as Ray would, with a traceback."""
    try:
        Path.home()
    except RuntimeError as error:
        raise UserError(
            f"this user has no home folder: HOME is not set, and the system does not know user {os.getuid()}",
            "export HOME=FOLDER, a folder that can be written",
        ) from error
    if not {"LOGNAME", "USER"} & os.environ.keys():
        try:
            getpass.getuser()
        except (KeyError, OSError):
            # MLflow and torch ask for it.
            os.environ["USER"] = str(os.getuid())


def _as_typed(text: str) -> str:
    """Paths below the current folder without that folder: jobs make paths absolute before they look
    at them.
    """
    here = os.getcwd().rstrip("/")
    return re.sub(rf"(?<![\w./:-]){re.escape(here)}/", "", text) if here else text
