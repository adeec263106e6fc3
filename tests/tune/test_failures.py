from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError

from beit.errors import JobFailedError, UserError
from tune import trial
from tune.failures import KILLED, cause
from tune.goal import GOALS
from tune.progress import Progress
from tune.state import Trial, read_trial, write_trial


def test_the_cause_is_what_is_wrong_and_neither_its_remedy_nor_where_ray_found_it():
    error = UserError("data.train=there holds no image", "give another folder")
    assert cause(error) == "data.train=there holds no image"
    assert cause(RayTaskError("train", "Traceback …", error)) == "data.train=there holds no image"
    assert (
        cause(RayTaskError("train", "Traceback …", error).as_instanceof_cause())
        == "data.train=there holds no image"
    )
    assert cause(ValueError("first line\n  the last one \n")) == "the last one"
    assert cause(KeyError()) == "KeyError"


def test_a_trial_notes_itself_what_it_died_of(tmp_path, monkeypatch):
    def fail(entry):
        raise JobFailedError("the loss is not finite", "lower the rate")

    monkeypatch.setattr(trial, "_run", fail)
    entry = {"number": 3, "params": {"mask.ratio": 0.5}, "config": {"output": {"root": str(tmp_path)}}}
    with pytest.raises(JobFailedError):
        trial.run_trial(entry)
    noted = Trial(number=3, params={"mask.ratio": 0.5}, status="failed", error="the loss is not finite")
    assert read_trial(str(tmp_path), "trial-003") == noted


def test_the_driver_keeps_what_a_failed_trial_has_noted_and_fills_in_for_one_that_was_killed(tmp_path):
    log = SimpleNamespace(end_trial=lambda trial: None, best=lambda goal, trials: None)
    lines = []
    progress = Progress(str(tmp_path), GOALS["loss"], log, points=4, trials=2, say=lines.append)
    for number, status, error in ((0, "failed", "the loss is not finite"), (1, "running", "")):
        write_trial(str(tmp_path), Trial(number=number, params={}, status=status, error=error))
        progress.on_trial_error(0, [], SimpleNamespace(config={"number": number, "params": {}}))
    assert lines == ["trial 0 failed: the loss is not finite", f"trial 1 failed: {KILLED}"]
    assert [read_trial(str(tmp_path), f"trial-{number:03d}").error for number in (0, 1)] == [
        "the loss is not finite",
        KILLED,
    ]
