import pytest

from pipelines.cli import main
from pipelines.tools.doctor import command
from pipelines.tools.doctor.command import DoctorConfig
from pipelines.tools.doctor.finding import Finding, Level


@pytest.mark.parametrize(("level", "code"), [(Level.FINE, 0), (Level.WARNING, 0), (Level.PROBLEM, 2)])
def test_problems_are_the_exit_code_and_warnings_stop_nothing(level, code, monkeypatch, capsys):
    monkeypatch.setattr(
        command,
        "examine",
        lambda config: iter([Finding(Level.FINE, "one"), Finding(level, "two", "do this")]),
    )
    if code:
        with pytest.raises(SystemExit) as left:
            main(["doctor"])
        assert left.value.code == code
    else:
        main(["doctor"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("-> do this")


def test_examining_this_machine_finds_no_problem(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    findings = list(
        command.examine(DoctorConfig(root=str(tmp_path)), {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    )
    assert len(findings) >= 8
    assert all(finding.remedy for finding in findings if finding.level is not Level.FINE)
