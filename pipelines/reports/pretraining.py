"""Build the parts of a pretraining's report that depend on its target: key figures, curves, classes,
masks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from beit.config import MaskConfig, ModelConfig
from beit.objectives.metric_chart import MetricChart
from beit.pretraining.masking import draw_mask
from beit.pretraining.targets import Target, find_target
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.charts import Chart, Line, chart_svg
from pipelines.reports.page import Charts, KeyFigure, Section, Text
from pipelines.reports.run import Report
from pipelines.runs.metrics import finite_metrics

UNCHARTED = ("train/hidden", "eval/perplexity")
"""Metrics without a chart: `mask_section` shows the share of hidden patches, and the perplexity of fixed
samples does not change."""


def pretraining_report(
    config: PretrainConfig, rows: Sequence[Mapping[str, float]], counts: Sequence[int] | None
) -> Report:
    """Describe the metrics of a pretraining, in the words of its target.

    Args:
        config: Configuration of the run.
        rows: Metrics of the run, by step.
        counts: How often each class was asked for. None: its target has no classes.
    """
    target = find_target(config.target.kind)
    last = finite_metrics(rows[-1]) if rows else {}
    where = "in the patches" if config.target.positions == "all" else "behind hidden patches"
    hidden = [row["train/hidden"] for row in map(finite_metrics, rows) if "train/hidden" in row]
    perplexity = MetricChart(
        title=f"{target.noun.capitalize()} perplexity",
        curves=(("train/perplexity", "perplexity"),),
        from_zero=True,
    )
    return Report(
        key_figures=[KeyFigure(*figure) for figure in target.key_figures(last)],
        reading=target.baseline(last),
        charts=[*target.charts(), perplexity],
        uncharted=UNCHARTED,
        checks=[
            *class_sections(counts, target, where=where),
            mask_section(config.mask, config.model, hidden),
        ],
    )


def class_sections(counts: Sequence[int] | None, target: type[Target], *, where: str) -> list[Section]:
    """Show how often each class occurred, if any did.

    Args:
        counts: By class. None: there are no classes.
        target: Names them, and says how to read the counts.
        where: Where they were counted, in words.
    """
    if counts is None or not sum(counts):
        return []
    noun = target.noun
    title, note = target.histogram or (f"{noun.capitalize()}s", "")
    share = np.sort(np.asarray(counts, dtype=float))[::-1] / sum(counts)
    used = share[share > 0]
    perplexity = math.exp(-(used * np.log(used)).sum())
    rank = np.unique(np.geomspace(1, len(used), 300).round().astype(int))
    chart = Chart(
        title=f"Share of each {noun}, commonest first",
        lines=[Line(name="share", x=rank, y=used[rank - 1])],
        x_label="rank",
        log=True,
    )
    text = (
        f"{len(used):,} of {len(counts):,} {noun}s occurred {where}. The commonest stands for {used[0]:.1%}, "
        f"and they are used as evenly as {perplexity:,.0f} equally frequent {noun}s would be (perplexity)."
    )
    if note:
        text += f" {note}"
    return [Section(title, [Text(text), Charts([chart_svg(chart)])])]


def mask_section(mask: MaskConfig, model: ModelConfig, seen: Sequence[float]) -> Section:
    """Compare the share of hidden patches that the masks' rule gives with the one that training saw.

    Args:
        mask: The rule.
        model: Gives the grid.
        seen: Shares of hidden patches, one of each report of the training.
    """
    if mask.ratio == 0:
        return Section("Masks", [Text("No patch was hidden (mask.ratio=0).")])
    rng = np.random.default_rng(0)
    expected = float(np.mean([draw_mask(rng, mask, model.grid).mean() for _ in range(500)]))
    text = (
        f"{mask.kind} masks with a budget of {mask.budget(model.grid)} of {model.patches} patches hide "
        f"{expected:.1%} on average"
    )
    if seen:
        mean = statistics.mean(seen)
        agrees = abs(mean - expected) < 0.01
        text += f"; the training saw {mean:.1%}" + (
            "." if agrees else ", which does not agree: undecodable images, which hide nothing, or a fault."
        )
    else:
        text += "."
    return Section("Masks", [Text(text[0].upper() + text[1:])])
