from beit.errors import UserError
from pipelines.runs import tracking
from pipelines.tools.doctor import places
from pipelines.tools.doctor.finding import Level

NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there


def only(findings):
    (finding,) = findings
    return finding


def test_storage_is_written_and_left_as_it_was(tmp_path):
    assert only(places.written(str(tmp_path / "new" / "deep"))).level is Level.FINE
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert only(places.written(str(tmp_path / "file"))).level is Level.PROBLEM


def test_mlflow_answers_or_not(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert only(places.mlflow(str(tmp_path), {})).level is Level.FINE
    assert list(tmp_path.iterdir()) == [], "looking makes no database"
    assert only(places.mlflow("s3://bucket/runs", {})).level is Level.WARNING
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:password@{NOBODY}")

    def check(place):
        raise UserError(tracking.trouble(place.uri, OSError("refused")), "correct MLFLOW_TRACKING_URI")

    monkeypatch.setattr(tracking, "check", check)
    finding = only(places.mlflow(str(tmp_path), {}))
    assert finding.level is Level.PROBLEM
    assert "password" not in "".join(finding.lines())
