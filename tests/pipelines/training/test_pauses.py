"""Pauses in which a model is evaluated: what is trained and evaluated, and what is repeated after an
interruption. No Ray: a stand-in trains and writes checkpoints.
"""

import contextlib
import json
from pathlib import Path

import pytest
from ray.exceptions import WorkerCrashedError

from beit.errors import JobFailedError
from beit.plain import override
from pipelines.cluster.placement import Node
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import PretrainTask
from pipelines.runs import checkpoints, evaluations
from pipelines.training import frame
from pipelines.training.task import Judge
from pipelines.training.training import Result


class AtPauses(Judge):
    """Evaluates at two pauses and at the end; raises the given exceptions, one per step."""

    folder = "validation"
    pauses = (4, 8)

    def __init__(self, *errors):
        self.errors, self.judged = [*errors], []

    def judge(self, folder, checkpoint, placement, step):
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.judged.append(step)
        return {"top1": step / 100}

    def line(self, found):
        return f"judged at step {found['step']}"

    def figures(self, found):
        return {"val/top1": found["top1"]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train twelve steps with a judge; returns the result, the segments that were trained, and the lines."""
    values = {"data.scenes": 32, "target.kind": "pixels", "steps": 12, "evaluation.images": 0}
    output = {"output.root": str(tmp_path), "output.name": "run", "output.mlflow": False}
    config = override(
        quickstart(), {**values, "optim.global_batch_size": 16, "optim.warmup_steps": 1, **output}
    )
    training = PretrainTask().prepare(config, preset="test", say=lambda line: None)
    monkeypatch.setattr("pipelines.cluster.session.start", lambda **options: contextlib.nullcontext())
    monkeypatch.setattr(frame, "cluster_nodes", lambda: [Node(cpus=2, gpus=0)])
    lines, segments, weights = [], [], ["first"]

    def trains(training, segment, folder, placement, *, say, follow, ends=99):
        step = min(segment.stop_at, ends)
        checkpoint = Path(folder.uri, folder.attempt_name, f"step-{step:08d}")
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_text(f"weights of step {step}, {weights[0]}")
        progress = {"step": step, "seconds": 1.0, "files": {}}
        (checkpoint / checkpoints.PROGRESS_FILE).write_text(json.dumps(progress))
        segments.append((segment.stop_at, segment.after_pause))
        return folder, Result(folder.uri, step, {"train/loss": 1.0}, str(checkpoint))

    def train(judge, *, resume=None, ends=99):
        monkeypatch.setattr(
            frame,
            "fit_while_it_advances",
            lambda *arguments, **options: trains(*arguments, **options, ends=ends),
        )
        return frame.train(training, resume=resume, debug=False, say=lines.append, judge=judge)[1]

    train.weights = weights
    return train, segments, lines


def judged_in(tmp_path):
    return [one["step"] for one in evaluations.read(str(tmp_path / "run"), "validation")]


def test_a_model_is_judged_at_every_pause_and_at_the_end(run, tmp_path):
    train, segments, lines = run
    judge = AtPauses()
    result = train(judge)
    assert judge.judged == judged_in(tmp_path) == [4, 8, 12]
    assert segments == [(4, False), (8, True), (12, True)]
    assert (result.step, result.metrics) == (12, {"train/loss": 1.0, "val/top1": 0.12})
    assert [line for line in lines if line.startswith("judged")] == [
        f"judged at step {step}" for step in (4, 8, 12)
    ]


def test_a_run_stopped_while_it_is_judged_is_judged_again_at_that_pause_and_goes_on(run, tmp_path):
    train, segments, lines = run
    folder = str(tmp_path / "run")
    first = AtPauses(None, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(first)
    remedy = f"resume it by --resume {folder}: the training until step 8 is kept"
    assert lines[-1] == f"stopped; {remedy}"
    with pytest.raises(JobFailedError) as failed:
        train(AtPauses(WorkerCrashedError()), resume=folder)
    assert failed.value.cause.startswith("The worker died unexpectedly")
    assert failed.value.remedy == f"fix the cause, then {remedy}"
    assert "The worker died" in Path(folder, "error.log").read_text()
    assert segments == [(4, False), (8, True)], "nothing is trained before the judge is done"
    last = AtPauses()
    assert train(last, resume=folder).step == 12
    assert segments[2:] == [(12, False)]
    assert (first.judged, last.judged, judged_in(tmp_path)) == ([4], [8, 12], [4, 8, 12])


def test_what_was_judged_before_an_interruption_is_not_judged_again(run, tmp_path, monkeypatch):
    train, segments, _ = run
    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "tell_mlflow", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(AtPauses())
    assert judged_in(tmp_path) == [4]
    judge = AtPauses()
    result = train(judge, resume=str(tmp_path / "run"))
    assert (judge.judged, result.metrics["val/top1"]) == ([8, 12], 0.12)
    assert [stop for stop, *_ in segments] == [4, 8, 12]


def test_a_run_that_was_ended_before_a_pause_is_judged_where_it_ended_and_trains_no_further(run, tmp_path):
    train, segments, _ = run
    judge = AtPauses()
    result = train(judge, ends=6)
    assert (judge.judged, result.step) == ([4, 6], 6)
    assert [stop for stop, *_ in segments] == [4, 8]


def test_weights_that_were_trained_again_after_going_back_are_judged_again(run, tmp_path):
    train, _, _ = run
    train(AtPauses())
    train.weights[0] = "second"
    judge = AtPauses()
    train(judge, resume=str(tmp_path / "run" / "attempt-1" / "step-00000004"))
    assert judge.judged == [8, 12], "step 4 has the weights that it had"
    assert judged_in(tmp_path) == [4, 8, 12]
