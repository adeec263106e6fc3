"""No secret is printed, logged or saved."""

import json
import os
import stat
import subprocess
import sys

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.cli import main
from pipelines.cluster.failures import job_failed
from pipelines.presets.pretrain import quickstart
from pipelines.redaction import redact, refuse_secrets
from pipelines.reports.page import Section, Text, write_page
from pipelines.runs import run_folder, tracking

SECRET = "wJalr/XUtn@FEMI+K7"
URIS = [
    f"s3://AKIA5:{SECRET}@bucket/shards",
    f"http://user:{SECRET}@127.0.0.1:5000/#/experiments/1",
    f"postgresql+psycopg2://user:{SECRET}@host:5432/db",
    f"https://{SECRET.replace('/', '').replace('@', '')}@github.com/org/repo.git",
    f"s3://bucket/shards?access_key=AKIA5&secret_key={SECRET}&region=eu",
    f"https://host/data?X-Amz-Credential=AKIA5&X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/c?sv=2024&sig={SECRET}",
    f"https://host/?token={SECRET}",
    f"Authorization: Bearer {SECRET.replace('@', '')}",
]
PLAIN = [
    "s3://bucket/shards/a:b/c@2x.jpg",
    "http://127.0.0.1:5000/pictures/c@2x.jpg",
    "http://[::1]:5000/",
    "gs://anonymous@bucket/shards?region=eu",
    "abfs://container@account.dfs.core.windows.net/shards",
    "s3://bucket?endpoint_override=127.0.0.1:9000&scheme=http",
    "ray://127.0.0.1:10001",
    "step 5/10 | loss 6.214 | mail me@example.org: 10:30",
]


@pytest.mark.parametrize("text", URIS)
def test_secrets_are_hidden_wherever_they_stand(text):
    for around in ("{}", "cannot open '{}': denied", 'data "{}", next "s3://other/x@y"', "a\n{}\nb", "({})"):
        hidden = redact(around.format(text))
        assert "***" in hidden
        for part in (SECRET, SECRET.partition("@")[0], "FEMI+K7", SECRET.replace("/", "").replace("@", "")):
            assert part not in hidden
    assert redact(redact(text)) == redact(text)
    assert json.loads(redact(json.dumps({"a": text, "b": ["x@y"]})))["b"] == ["x@y"]


@pytest.mark.parametrize("text", PLAIN)
def test_other_addresses_stay_as_they_are(text):
    assert redact(text) == text
    refuse_secrets([text])


def test_a_command_line_with_a_secret_is_refused_without_showing_it(capsys):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--data.train", URIS[0]])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "s3://***@bucket/shards" in told
    assert "AWS_ACCESS_KEY_ID" in told
    assert "FEMI" not in told


@pytest.mark.parametrize("uri", URIS[:2])
def test_a_configuration_with_a_secret_is_not_saved(tmp_path, uri):
    config = override(quickstart(), {"data.train": uri, "output.root": str(tmp_path)})
    with pytest.raises(UserError, match=r"\*\*\*"):
        run_folder.create(config, job="pretrain", preset="quickstart", inputs={})
    assert list(tmp_path.rglob("*.json")) == []


def test_what_is_written_beside_a_run_has_no_secret(tmp_path, monkeypatch):
    text = " ".join(URIS)
    job_failed(RuntimeError(text), str(tmp_path), doing="x", cause="y", remedy="z")
    write_page(str(tmp_path), heading=text, sections=[Section("Data", [Text(text)])])
    monkeypatch.setattr(sys, "argv", ["beit", "pretrain", *URIS])
    config = override(quickstart(), {"output.root": str(tmp_path), "output.name": "run"})
    run_folder.create(config, job="pretrain", preset="quickstart", inputs={})
    place = tracking.place_of(str(tmp_path / "run"), experiment="e", params={"data.train": URIS[0]})
    tracking.begin(str(tmp_path / "run"), place, lambda line: None)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"error.log", "index.html", "environment.json", "mlflow.db"}
    for path in files:
        assert b"FEMI" not in path.read_bytes(), path


def test_printed_lines_and_tracebacks_have_no_secret():
    code = (
        "from pipelines.command_line.run import run_program\n"
        "def job(arguments, debug):\n"
        f"    print('reading', {URIS[0]!r})\n"
        f"    raise KeyError({URIS[1]!r})\n"
        "run_program(job, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "reading s3://***@bucket/shards\n"
    assert "KeyError: 'http://***@127.0.0.1:5000/#/experiments/1'" in done.stderr


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_files_of_runs_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        config = override(quickstart(), {"output.root": str(tmp_path), "output.name": "run"})
        run_folder.create(config, job="pretrain", preset="quickstart", inputs={})
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}
