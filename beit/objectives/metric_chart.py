"""Which metrics of a run are drawn together, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricChart:
    """A chart of metrics over the steps. Metrics that a run has not measured are left out."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """(metric, label)."""
    baselines: tuple[tuple[str, str], ...] = ()
    """(metric, label): drawn thinner, to compare the curves with."""
    percent: bool = False
    """The metrics are shares of 1."""
    from_zero: bool = False
    """The vertical axis starts at 0."""


LOSS = MetricChart(title="Loss", curves=(("train/loss", "loss"),))
