import pytest
from ray.exceptions import WorkerCrashedError

from beit.errors import JobFailedError
from pipelines.cluster.failures import cause_of, resumable

# As Ray 2.60 words what a stage of Ray Data raised, and an actor that could not be built.
OF_A_STAGE = """\x1b[36mray::MapBatches(views)()\x1b[39m (pid=3176)
  File "views.py", line 11, in views
    raise FileNotFoundError(2, "No such file", "x.parquet")
FileNotFoundError: [Errno 2] No such file: 'x.parquet'

The above exception was the direct cause of the following exception:

\x1b[36mray::MapBatches(views)()\x1b[39m (pid=3176)
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext.get_current()`"""  # noqa: E501
OF_AN_ACTOR = """The actor died because of an error raised in its creation task, ray::MapWorker.__init__() (pid=3256)
  File "judge.py", line 7, in __init__
    self._model.to(device)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
Process 7 has 70 GiB in use."""  # noqa: E501

OF_A_DEAD_ACTOR = """The actor died unexpectedly before finishing this task.
\tclass_name: TrainController
\tactor_id: 3cfb295e8b53a360db35d11801000000
\tpid: 3256
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (OF_A_STAGE, "FileNotFoundError: [Errno 2] No such file: 'x.parquet'"),
        (OF_AN_ACTOR, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (OF_A_DEAD_ACTOR, "Ray's actor TrainController died"),
        (
            "Task was killed due to the node running low on memory.\nMemory on the node was 7 GB.",
            "Task was killed due to the node",
        ),
    ],
)
def test_the_cause_is_the_line_of_what_was_raised_first(text, cause):
    assert cause_of(text).startswith(cause)
    assert "\n" not in cause_of(text)


def test_a_failure_leaves_its_text_and_says_how_to_go_on_and_a_mistake_of_the_code_stays_one(tmp_path):
    with (
        pytest.raises(JobFailedError) as failure,
        resumable("meanwhile", "go on", folder=str(tmp_path), say=print),
    ):
        raise WorkerCrashedError
    assert failure.value.cause.startswith("The worker died unexpectedly while executing this task.")
    assert failure.value.remedy == "fix the cause, then go on"
    assert "The worker died" in (tmp_path / "error.log").read_text()
    with (
        pytest.raises(JobFailedError, match="--debug shows everything"),
        resumable("meanwhile", "go on", folder=None, say=print),
    ):
        raise FileNotFoundError(2, "No such file", "x.parquet")
    with pytest.raises(ZeroDivisionError), resumable("meanwhile", "go on", folder=None, say=print):
        _ = 1 // 0
