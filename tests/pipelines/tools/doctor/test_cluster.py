import contextlib
import http.server
import importlib.metadata
import json
import threading

import pytest

from pipelines.cluster.joined import Door
from pipelines.tools.doctor import cluster
from pipelines.tools.doctor.finding import Level

NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there


def only(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def job_server():
    """A dashboard's answers: 401 without the right token, its version with it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            right = self.headers.get("Authorization") == "Bearer right" or self.server.everybody
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": self.server.version}).encode() if right else b"")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.everybody = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_tokens_are_there_and_private(tmp_path):
    file = tmp_path / "token"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert only(cluster.token(environment)).level is Level.PROBLEM
    file.write_text("secret")
    file.chmod(0o644)
    readable, used = cluster.token(environment)
    assert readable.level is Level.WARNING
    assert readable.remedy == f"chmod 600 {file}"
    assert used.level is Level.FINE
    file.chmod(0o600)
    assert only(cluster.token(environment)).level is Level.FINE
    assert "secret" not in "".join(only(cluster.token(environment)).lines())


def test_a_cluster_without_tokens_is_a_problem(monkeypatch):
    monkeypatch.setattr("pipelines.cluster.joined.knock", lambda address: Door.OPEN)
    monkeypatch.setattr("pipelines.cluster.session.start", lambda: contextlib.nullcontext())
    monkeypatch.setattr(cluster, "cluster_nodes", list)
    found = list(cluster.ray_cluster({"RAY_ADDRESS": "10.0.0.1:6379"}))
    assert [finding.level for finding in found] == [Level.PROBLEM, Level.FINE]
    assert "asks for no token" in found[0].what


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "RAY_API_SERVER_ADDRESS"),
        (NOBODY, "nobody answers"),
        ("somewhere", "no HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_joined_is_a_problem(address, words):
    finding = only(cluster.ray_cluster({"RAY_ADDRESS": address}))
    assert finding.level is Level.PROBLEM
    assert words in finding.what + finding.remedy


def test_the_job_server_answers_wants_another_token_or_has_another_version(job_server):
    job_server.version = importlib.metadata.version("ray")
    environment = {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{job_server.server_port}",
        "RAY_AUTH_MODE": "token",
    }
    wrong = only(cluster.job_server({**environment, "RAY_AUTH_TOKEN": "wrong"}))
    assert wrong.level is Level.PROBLEM
    assert "another token" in wrong.what
    assert only(cluster.job_server({**environment, "RAY_AUTH_TOKEN": "right"})).level is Level.FINE
    job_server.version = "2.9.0"
    assert (
        only(cluster.job_server({**environment, "RAY_AUTH_TOKEN": "right"})).remedy
        == "pip install ray==2.9.0"
    )
    assert only(cluster.job_server({"RAY_API_SERVER_ADDRESS": f"http://{NOBODY}"})).level is Level.PROBLEM


def test_a_dashboard_that_lists_its_jobs_for_everybody_is_a_problem(job_server):
    job_server.version = importlib.metadata.version("ray")
    job_server.everybody = True
    address = f"http://127.0.0.1:{job_server.server_port}"
    found = list(cluster.job_server({"RAY_API_SERVER_ADDRESS": address}))
    assert [finding.level for finding in found] == [Level.PROBLEM, Level.FINE]
    assert "asks for no token" in found[0].what
