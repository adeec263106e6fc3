"""Users whom the system does not know, as in containers that run under any number."""

import os
from pathlib import Path

import pytest

from pipelines.command_line import run


def test_a_user_without_a_home_folder_is_told_in_two_lines(monkeypatch, capsys):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(SystemExit) as left:
        run.run_program(lambda arguments, debug: pytest.fail("it was started"), [])
    assert left.value.code == 2
    cause, remedy = capsys.readouterr().err.splitlines()
    assert "no home folder" in cause
    assert "export HOME=FOLDER" in remedy


def test_a_user_without_a_name_is_called_by_the_number(monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", unknown)
    for name in ("USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    seen = []
    run.run_program(lambda arguments, debug: seen.append(os.environ["USER"]), [])
    assert seen == [str(os.getuid())]
    monkeypatch.delenv("USER")
