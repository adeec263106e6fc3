"""A task in a file of one's own is a job like all others, without a change in `beit/` or `pipelines/`."""

import json
from pathlib import Path

import pytest

from beit.errors import UserError
from beit.loading import load_model
from pipelines import cli
from pipelines.runs.metrics import read_metrics
from pipelines.training.frame import rebuild_report, run_command


def test_a_task_of_ones_own_trains_through_the_stream_and_has_a_report(extension, turned):
    rotation, result = extension("rotation"), turned.result
    extension("arrays")
    assert result.step == 3
    assert "rotation: 4 turns, chance 25%" in turned.lines
    rows = read_metrics(result.run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert 0.5 < rows[0]["train/loss"] < 3, "cross-entropy near that of guessing one of four"
    model = load_model(Path(result.run, "model"), rotation.RotationModel)
    assert model.head.out_features == 4
    assert json.loads(Path(result.run, "config.json").read_text())["job"] == "rotation"
    page = Path(result.run, "report", "index.html")
    text = page.read_text()
    assert "One of 4 turns." in text
    for word in ("nats", "token", "beit rotation", "beit report"):
        assert word not in text.partition(">Configuration<")[0].lower(), "that belongs to beit's own jobs"
    page.unlink()
    assert Path(rebuild_report(rotation.Rotation(), result.run)).read_text() == text
    with pytest.raises(UserError, match="is a run of rotation, which is no command of beit"):
        cli.report([result.run], debug=False)


def test_a_wrong_option_of_it_is_refused_before_anything_starts(extension, tmp_path):
    rotation = extension("rotation")
    with pytest.raises(UserError, match="--turns 3 is neither 2 nor 4"):
        run_command(rotation.Rotation(), ["--turns", "3", "--output.root", str(tmp_path)], debug=False)
    with pytest.raises(UserError, match="perhaps you meant --turns"):
        run_command(rotation.Rotation(), ["--turn", "4"], debug=False)
    with pytest.raises(UserError, match="rotation has no preset quick"):
        run_command(rotation.Rotation(), ["quick"], debug=False)
    named = type("Named", (rotation.Rotation,), {"program": "python -m rotation"})
    with pytest.raises(UserError, match="python -m rotation has no option --turn"):
        run_command(named(), ["--turn", "4"], debug=False)
    assert not list(tmp_path.iterdir())
