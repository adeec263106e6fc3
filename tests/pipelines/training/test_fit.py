"""What a run does when its workers die more often than Ray may start them again."""

import json
from types import SimpleNamespace

import pytest

from beit.errors import JobFailedError
from pipelines.runs import checkpoints, run_folder
from pipelines.training import fit


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """Trains with workers that reach these steps, one an attempt, each with a checkpoint, and die there; the
    last step is the end.
    """

    def train(*reached, kind=fit.WorkersLostError):
        left, starts = list(reached), []

        def dies(training, segment, folder, placement, *, say, follow):
            found = checkpoints.latest_checkpoint(folder.uri)
            starts.append((folder.attempt, None if found is None else checkpoints.step_of(found)))
            step = left.pop(0)
            if step is not None:
                checkpoint = tmp_path / folder.attempt_name / f"step-{step:08d}"
                checkpoint.mkdir(parents=True)
                (checkpoint / checkpoints.PROGRESS_FILE).write_text(
                    json.dumps({"step": step, "seconds": 1.0, "files": {}})
                )
            if left:
                raise kind("a machine was lost (after 3 restarts)", "resume it by --resume")
            return SimpleNamespace(step=step)

        monkeypatch.setattr(fit, "fit", dies)
        lines = []
        folder = run_folder.RunFolder(str(tmp_path), 1)
        return (
            lambda: fit.fit_while_it_advances(None, None, folder, None, say=lines.append),
            starts,
            lines,
        )

    return train


def test_a_run_that_advances_goes_on_however_often_machines_are_lost(dying):
    run, starts, lines = dying(10, 20, 30)
    folder, result = run()
    assert (folder.attempt, result.step) == (3, 30)
    assert starts == [(1, None), (2, 10), (3, 20)]
    assert len(lines) == 2
    assert "a machine was lost" in lines[0]


def test_a_run_that_dies_without_a_new_checkpoint_fails(dying):
    run, starts, _ = dying(10, None, 30)
    with pytest.raises(JobFailedError, match="a machine was lost"):
        run()
    assert [attempt for attempt, *_ in starts] == [1, 2]


def test_a_run_whose_shard_is_gone_ends_although_it_advances(dying):
    run, starts, _ = dying(10, 20, 30, kind=JobFailedError)
    with pytest.raises(JobFailedError):
        run()
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "ray.exceptions.UserCodeException: UDF failed\nFileNotFoundError: [Errno 2] x.parquet",
            JobFailedError,
        ),
        ("The actor died unexpectedly before finishing this task.", fit.WorkersLostError),
    ],
)
def test_what_the_stream_raises_is_no_lost_worker(tmp_path, text, kind):
    failed = fit._failed(RuntimeError(text), run_folder.RunFolder(str(tmp_path), 1), "after 3 restarts")
    assert type(failed) is kind
    assert f"--resume {tmp_path}" in failed.remedy
