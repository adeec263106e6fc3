"""`Judge`: the interface of what evaluates a model during its training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.placement import Placement
from pipelines.runs.run_folder import RunFolder


class Judge(ABC):
    """Evaluates the models of a training at its pauses and at its end, when the whole cluster is free."""

    folder: str
    """Subfolder of the run folder that keeps the evaluations."""

    variant: str = ""
    """Distinguishes evaluations of the same step with other settings. A step is evaluated only once in each
    variant."""

    pauses: Sequence[int] = ()
    """Steps before the last one after which training pauses at a checkpoint."""

    @abstractmethod
    def judge(self, folder: RunFolder, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:
        """Evaluate a checkpoint; returns JSON types."""

    @abstractmethod
    def line(self, found: Mapping[str, Any]) -> str:
        """Format what `judge` returned as a line."""

    @abstractmethod
    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Pick the figures that become metrics of the run, by `group/name`."""
