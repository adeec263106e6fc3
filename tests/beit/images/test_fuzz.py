"""A short run of the fuzzer; `python -m tests.fuzz_decoder` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_damaged_files_of_all_formats_are_decoded_or_refused_in_time_and_memory():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_decoder", "--inputs", "350", "--seed", "1"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "350 inputs of seed 1" in ran.stdout
