"""Set how a process uses CPU cores and memory for torch."""

from __future__ import annotations

import ctypes
import functools

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def compute_with(threads: int, *, device: str) -> None:
    """Let torch use a number of threads in this process; on the CPU, also keep freed memory for later use.

    By default glibc returns large blocks to the system at once, and the system fills each new block with
    zeros, page by page. For a tokenizer, whose activations take tens of megabytes, that is a fifth to a third
    of the time (docs/log/speed.md). Other allocators are not changed.
    """
    torch.set_num_threads(threads)
    if device == "cpu":
        _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)  # A thread's own arena is too small for blocks of 64 MB.
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
