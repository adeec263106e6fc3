"""Freed memory is used again, whichever thread computes."""

import platform
import subprocess
import sys

import pytest

# In a process of its own: the setting is for the life of one.
PROGRAM = """
import resource, sys, threading, torch
from beit.cores import compute_with
if sys.argv[1] == "kept":
    compute_with(1, device="cpu")
torch.set_num_threads(1)
found = []
def fill():
    for _ in range(30):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(64 << 20, dtype=torch.uint8)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(max(found[-8:]), min(found[-8:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_large_blocks_come_to_be_filled_with_zeros_no_more():
    faults = {}
    for memory in ("given back", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, memory], capture_output=True, text=True, check=True
        )
        faults[memory] = [int(word) for word in done.stdout.split()]
    assert faults["given back"][1] > 20  # 16,384 small pages, or 32 of 2 MiB
    assert faults["kept"] == [0, 0]
