import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import time
    import ray, ray._private.worker
    from pipelines.cluster.vitals import watched

    class Process:
        def __init__(self, code):
            self.code = code
        def poll(self):
            return self.code

    class Node:
        head, killed = {head}, False
        def dead_processes(self):
            return [("{name}", Process(-9))]
        def kill_all_processes(self, **options):
            print("ended the others", flush=True)

    ray._private.worker._global_node = Node()
    with watched("resume it by --resume runs/mine"):
        time.sleep({seconds})
    print("came to its end")
"""


def ended(**values):
    """What a driver prints, and its exit code."""
    code = textwrap.dedent(PROGRAM.format(**{"seconds": 0.5, **values}))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize(("name", "words"), [("raylet", "raylet"), ("gcs_server", "control store (GCS)")])
def test_the_death_of_rays_own_processes_is_told_and_ends_the_driver(name, words):
    code, out, errors = ended(head=True, name=name, seconds=30)
    assert code == 1
    assert out == ["ended the others"]
    assert errors[-2:] == [f"failed: Ray's {words} died", "        resume it by --resume runs/mine"]


@pytest.mark.parametrize("values", [{"head": False, "name": "raylet"}, {"head": True, "name": "dashboard"}])
def test_a_joined_cluster_and_what_is_not_vital_end_nothing(values):
    code, out, _ = ended(**values)
    assert (code, out) == (0, ["came to its end"])
