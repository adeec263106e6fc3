"""Say so when Ray itself dies under a driver, which would otherwise end without a word of Python's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.1

VITAL = {"raylet": "raylet", "gcs_server": "control store (GCS)"}
"""Processes without which a driver cannot go on, and what to call them."""


@contextmanager
def watched(remedy: str) -> Iterator[None]:
    """While the context lasts, watch the processes of the Ray that this driver has started. In a cluster that
    it has joined there are none.

    Where one dies, a line of cause and one of remedy are printed, Ray's other processes are ended, and the
    driver exits with 1: its own exceptions would come too late, or never.

    Args:
        remedy: How to resume.
    """
    import ray._private.worker

    node: Any = ray._private.worker._global_node
    if node is None or not node.head:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            dead = [VITAL[name] for name, _ in node.dead_processes() if name in VITAL]
            if dead and not ended.is_set():
                print(f"failed: Ray's {dead[0]} died\n        {remedy}", file=sys.stderr, flush=True)
                node.kill_all_processes(check_alive=False, allow_graceful=False)
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
