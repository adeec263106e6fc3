"""A training on a cluster that grows and shrinks by itself: see growing_cluster.py for how, and
docs/log/clusters.md for its output.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("growing_cluster.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nodes_come_for_a_training_a_lost_one_is_replaced_and_all_go_after_it():
    with tempfile.TemporaryDirectory(
        prefix="beit-", ignore_cleanup_errors=True
    ) as folder:  # Unix sockets have short names.
        command = [
            sys.executable,
            str(PROGRAM),
            f"{folder}/g",
            "--kill",
            "--data.scenes",
            "2560",
            "--epochs",
            "1",
        ]
        command += ["--optim.warmup-steps", "2", "--evaluation.images", "0"]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False
        )
    assert done.returncode == 0, done.stdout
    assert "the head is there, with no other node: True" in done.stdout
    # A checkpoint is due every 10 steps; which one is the last before the node dies is the machine's choice.
    assert re.search(r"started again, 2 workers: continuing from step [123]0\b", done.stdout), done.stdout
    assert "no node is left" in done.stdout
    assert "the ledger: 2,560 samples settled = 40 steps x 64; 1 epochs complete" in done.stdout
