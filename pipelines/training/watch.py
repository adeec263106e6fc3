"""Watch a training from the driver: print its lines, hand on its rows of metrics, list broken images, forward
Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from pipelines.csv_files import write_csv
from pipelines.runs import run_folder
from pipelines.sources import Source
from pipelines.stream.samples import Samples

Follow = Callable[[list[dict[str, Any]]], bool]
"""Called twice a second with the rows of metrics since the last call; False asks the run to end early, with a
checkpoint."""

QUARANTINE_FILE = "quarantine.csv"

# Workers that have begun hear of the end after a step; those that wait for a lost machine do not hear of it.
HEARD_WITHIN_SECONDS = 60


class Watch:
    """Prints the recorder's lines on the driver and keeps quarantine.csv while a training runs."""

    def __init__(
        self,
        recorder: Any,
        dispatcher: Any,
        source: Source,
        samples: Samples,
        folder: run_folder.RunFolder,
        say: Callable[[str], None],
        follow: Follow | None,
    ) -> None:
        self._follow = follow
        self._recorder, self._dispatcher = recorder, dispatcher
        self._source, self._samples = source, samples
        self._folder, self._say = folder, say
        self._ended = threading.Event()
        self._quarantine: dict[tuple[int, int], tuple[str, str]] = {}
        self._known = 0
        self._complained = False
        self.stopped_by: signal.Signals | None = None
        """The signal that ends the run."""
        self.ending = False
        """Whether `follow` has ended the run early."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def stop(self, number: int) -> None:
        """Let the workers write a last checkpoint and end.

        The handler of a signal calls it, so it only notes the signal.
        """
        self.stopped_by = signal.Signals(number)

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        import ray

        ended, told_at = False, None
        while not ended:
            ended = self._ended.wait(0.5)
            try:
                if self.stopped_by is not None and told_at is None:
                    self._recorder.stop.remote()
                    name = "Ctrl-C" if self.stopped_by == signal.SIGINT else self.stopped_by.name
                    self._say(f"{name}: a last checkpoint, then the end (once more: at once)")
                    told_at = time.monotonic()
                if told_at is not None and not ended and self._nobody_hears(told_at):
                    self._say("no workers are there to write one")
                    told_at = math.inf
                    signal.raise_signal(signal.SIGTERM)  # The second signal: at once.
                for line in ray.get(self._recorder.lines.remote()):
                    self._say(line)
                self._hand_over(ray.get(self._recorder.rows.remote()))
                self._list_quarantine(ray.get(self._dispatcher.quarantined.remote(self._known)))
            except ray.exceptions.RayActorError:
                self._known = 0  # The dispatcher starts again; what it will list may be known already.
            except Exception as error:
                # The training goes on, and so must its lines.
                if not self._complained:
                    self._say(f"warning: {QUARANTINE_FILE} cannot be written: {error}")
                self._complained = True

    def _nobody_hears(self, told_at: float) -> bool:
        """Whether no worker hears of the end: they, or those in place of lost ones, still wait for
        machines.
        """
        import ray

        begun, heard = ray.get(self._recorder.workers.remote())
        return not heard and (not begun or time.monotonic() - told_at > HEARD_WITHIN_SECONDS)

    def _hand_over(self, rows: list[dict[str, Any]]) -> None:
        if self._follow is not None and not self._follow(rows) and not self.ending:
            self._recorder.stop.remote()
            self.ending = True

    def _list_quarantine(self, entries: list[tuple[int, int, int]]) -> None:
        self._known += len(entries)
        new = {(unit, row): status for unit, row, status in entries if (unit, row) not in self._quarantine}
        if not new:
            return
        for (unit, row), status in new.items():
            found = self._source.unit(unit)
            self._quarantine[unit, row] = (found.describe(row), self._samples.reason(found, row, status))
        listed = [self._quarantine[key] for key in sorted(self._quarantine)]
        write_csv(self._folder.path(QUARANTINE_FILE), ["image", "reason"], listed)
