"""Each finding, in a situation made for it. Ray itself is not started: clusters that answer are in the
transcript of docs/log/clusters.md.
"""

import http.server
import json
import os
import threading

import pytest

from beit.errors import UserError
from pipelines.cli import main
from pipelines.runs import tracking
from pipelines.tools import doctor
from pipelines.tools.doctor import DoctorConfig, Finding, Level

NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there


def only(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def job_server():
    """A dashboard's answers: 401 without the right token, its version with it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            right = self.headers.get("Authorization") == "Bearer right"
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": self.server.version}).encode() if right else b"")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_versions_that_are_not_what_the_package_asks_for_are_named(monkeypatch):
    assert only(doctor.versions()).level is Level.FINE
    installed = doctor.importlib.metadata.version
    monkeypatch.setattr(
        doctor.importlib.metadata, "version", lambda name: "2.9.1" if name == "ray" else installed(name)
    )
    finding = only(doctor.versions())
    assert finding.level is Level.PROBLEM
    assert "ray 2.9.1 is not ==2.60.*" in finding.what


def test_small_shared_memory_and_full_disks_are_told(tmp_path):
    assert only(doctor.shared_memory(0.0, tmp_path)).level is Level.FINE
    assert only(doctor.shared_memory(1e18, tmp_path)).level is Level.WARNING
    usage = os.statvfs(tmp_path)
    finding = only(doctor.disk(tmp_path))
    assert f"{usage.f_bavail * usage.f_frsize / 2**30:.0f} GiB free" in finding.what


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1 << 30, "total": 100 << 30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert only(doctor.disk(tmp_path)).level is Level.PROBLEM


def test_tokens_are_there_and_private(tmp_path):
    file = tmp_path / "token"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert only(doctor.token(environment)).level is Level.PROBLEM
    file.write_text("secret")
    file.chmod(0o644)
    readable, used = doctor.token(environment)
    assert readable.level is Level.WARNING
    assert readable.remedy == f"chmod 600 {file}"
    assert used.level is Level.FINE
    file.chmod(0o600)
    assert only(doctor.token(environment)).level is Level.FINE
    assert "secret" not in "".join(only(doctor.token(environment)).lines())


def test_a_cluster_without_tokens_is_a_warning(tmp_path):
    environment = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    assert only(doctor.token(environment)).level is Level.WARNING


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "RAY_API_SERVER_ADDRESS"),
        (NOBODY, "nobody answers"),
        ("somewhere", "no HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_joined_is_a_problem(address, words):
    finding = only(doctor.ray_cluster({"RAY_ADDRESS": address}))
    assert finding.level is Level.PROBLEM
    assert words in finding.what + finding.remedy


def test_the_job_server_answers_wants_another_token_or_has_another_version(job_server):
    job_server.version = doctor.importlib.metadata.version("ray")
    environment = {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{job_server.server_port}",
        "RAY_AUTH_MODE": "token",
    }
    wrong = only(doctor.job_server({**environment, "RAY_AUTH_TOKEN": "wrong"}))
    assert wrong.level is Level.PROBLEM
    assert "another token" in wrong.what
    assert only(doctor.job_server({**environment, "RAY_AUTH_TOKEN": "right"})).level is Level.FINE
    job_server.version = "2.9.0"
    assert (
        only(doctor.job_server({**environment, "RAY_AUTH_TOKEN": "right"})).remedy == "pip install ray==2.9.0"
    )
    assert only(doctor.job_server({"RAY_API_SERVER_ADDRESS": f"http://{NOBODY}"})).level is Level.PROBLEM


def test_storage_is_written_and_left_as_it_was(tmp_path):
    assert only(doctor.written(str(tmp_path / "new" / "deep"))).level is Level.FINE
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert only(doctor.written(str(tmp_path / "file"))).level is Level.PROBLEM


def test_mlflow_answers_or_not(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert only(doctor.mlflow(str(tmp_path), {})).level is Level.FINE
    assert list(tmp_path.iterdir()) == [], "looking makes no database"
    assert only(doctor.mlflow("s3://bucket/runs", {})).level is Level.WARNING
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:password@{NOBODY}")

    def check(run, place):
        raise UserError(tracking.trouble(place.uri, OSError("refused")), "mend MLFLOW_TRACKING_URI")

    monkeypatch.setattr(tracking, "check", check)
    finding = only(doctor.mlflow(str(tmp_path), {}))
    assert finding.level is Level.PROBLEM
    assert "password" not in "".join(finding.lines())


@pytest.mark.parametrize(("level", "code"), [(Level.FINE, 0), (Level.WARNING, 0), (Level.PROBLEM, 2)])
def test_problems_are_the_exit_code_and_warnings_stop_nothing(level, code, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda config: iter([Finding(Level.FINE, "one"), Finding(level, "two", "do this")])
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
        doctor.examine(DoctorConfig(root=str(tmp_path)), {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    )
    assert len(findings) >= 8
    assert all(finding.remedy for finding in findings if finding.level is not Level.FINE)
