from types import SimpleNamespace

import pytest

from beit.errors import JobFailedError
from tune.parent import run_to_the_end


def throw(error):
    raise error


@pytest.mark.parametrize(
    ("work", "conclude", "failure", "status", "raised"),
    [
        (lambda: True, lambda: 1, None, "FINISHED", None),
        (lambda: False, lambda: 1, None, "KILLED", KeyboardInterrupt),
        (lambda: True, lambda: 1, "nothing came", "FAILED", JobFailedError),
        (lambda: throw(ValueError()), lambda: 1, None, "FAILED", ValueError),
        (lambda: throw(KeyboardInterrupt()), lambda: 1, None, "KILLED", KeyboardInterrupt),
        (lambda: True, lambda: throw(OSError()), None, "FAILED", OSError),
        (lambda: True, lambda: throw(KeyboardInterrupt()), None, "KILLED", KeyboardInterrupt),
        (lambda: throw(KeyboardInterrupt()), lambda: throw(OSError()), None, "KILLED", OSError),
    ],
)
def test_its_run_in_mlflow_ends_however_it_ends(work, conclude, failure, status, raised):
    ended = []
    log = SimpleNamespace(finish=lambda status, files: ended.append((status, files)))

    def run():
        return run_to_the_end(
            work, conclude, lambda result: failure, log=log, files=["table"], again="beit again", say=print
        )

    if raised is None:
        assert run() == 1
    else:
        with pytest.raises(raised):
            run()
    assert ended == [(status, ["table"])]
