"""The frame of all jobs, with a training that is not run."""

from types import SimpleNamespace

import pytest

from pipelines.config.pretrain import PretrainConfig
from pipelines.runs.run_folder import RunFolder
from pipelines.training import frame
from pipelines.training.task import Task


class Unreported(Task):
    """A job whose report fails."""

    name = "unreported"
    config_type = PretrainConfig
    presets = {}  # noqa: RUF012

    def prepare(self, config, *, preset, say):
        return SimpleNamespace(config=config)

    def conclusion(self, finished, result):
        return ["final loss 3"]

    def keep(self, finished, result):
        return [f"model: {finished.run}/model"]

    def report(self, finished):
        raise OSError("no space left on device")


def test_what_a_run_has_reached_is_said_before_a_report_that_may_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "train", lambda *arguments, **options: (RunFolder(str(tmp_path), 1), None))
    lines = []
    with pytest.raises(OSError, match="no space"):
        frame.run(Unreported(), PretrainConfig(), say=lines.append)
    assert lines == ["final loss 3", f"model: {tmp_path}/model"]
