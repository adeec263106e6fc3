"""What judges a model while it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.placement import Placement
from pipelines.runs.run_folder import RunFolder


class Judge(ABC):
    """Judges the models of a training at its pauses and at its end, when the whole cluster is free."""

    folder: str
    """Folder in the run folder that keeps the evaluations."""

    variant: str = ""
    """Tells two evaluations of the same step apart. What was judged in this variant is not judged again."""

    pauses: Sequence[int] = ()
    """Steps after which training pauses at a checkpoint, before the last."""

    @abstractmethod
    def judge(self, folder: RunFolder, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:
        """Judge a checkpoint; returns JSON types."""

    @abstractmethod
    def line(self, found: Mapping[str, Any]) -> str:
        """Put what `judge` returned into a line."""

    @abstractmethod
    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Pick the figures that become metrics of the run, by `group/name`."""
