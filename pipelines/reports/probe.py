"""Report sections about frozen features: a probe's table over layers, and k-NN during pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.probe_table import ProbeRow
from pipelines.reports.charts import Chart, Line, chart_svg
from pipelines.reports.page import Charts, Section, Table, Text, strong

LAST_LAYER = (
    "The last layers of a model that was pretrained by masked image modelling are usually weak for probing, "
    "which does not mean that the run has failed: they specialise in predicting the visual token of each "
    "patch, and lose what a patch says about the whole image. The middle layers keep that. In the paper the "
    "9th of 12 layers was best for a base model and the 14th of 24 for a large one (appendix D); users of "
    "the authors' weights saw about 20 % on ImageNet at the last layer of a model that reaches more than "
    "83 % when it is fine-tuned. In a model with few layers, the last layer can be the best."
)

NOT_THE_MEASURE = (
    "Frozen features are not what this pretraining is for. Nearest neighbours in particular compare colours "
    "and textures, which random weights preserve. After a short run, k-NN can be worse than with random "
    "weights although the model has learned (measured for this project on 100 classes after 900 steps: "
    "4.5 % against 6.0 %, while fine-tuning the same weights reached 9.6 %, and training from scratch "
    "6.5 %). Judge a pretraining by fine-tuning, compared with training from scratch."
)


def probe_sections(rows: Sequence[ProbeRow]) -> list[Section]:
    """Build the section with a probe's table over layers; none before the first row."""
    if not rows:
        return []
    first = rows[0]
    charts = [
        Chart(title=title, lines=_lines(rows, field), x_label="layer", percent=True, from_zero=True)
        for title, field in (("k-NN, top-1", "knn_top1"), ("Linear probe, top-1", "linear_top1"))
    ]
    blocks = [
        Text(_verdict(rows)),
        Charts([chart_svg(chart) for chart in charts]),
        _table(rows),
        Text(
            f"{first.train_images:,} training images, {first.val_images:,} to be judged by, each once; "
            "centre views, nothing hidden or augmented. Features are what blocks give, before any norm: the "
            "mean of the patches, or the class token, which masked image modelling never asks for anything."
        ),
        Text(LAST_LAYER),
        Text(NOT_THE_MEASURE),
    ]
    return [Section("Frozen features, layer by layer", blocks)]


def _lines(rows: Sequence[ProbeRow], field: str) -> list[Line]:
    """Make a curve for each pooling of the trained weights, and a baseline from the better pooling of the
    random weights.
    """
    lines = []
    for pooling, name in (("mean", "mean of the patches"), ("cls", "class token")):
        found = [row for row in rows if (row.weights, row.pooling) == ("trained", pooling)]
        if found:
            lines.append(
                Line(name=name, x=[row.layer for row in found], y=[getattr(row, field) for row in found])
            )
    random = [row for row in rows if row.weights == "random"]
    if random:
        layers = sorted({row.layer for row in random})
        best = [max(getattr(row, field) for row in random if row.layer == layer) for layer in layers]
        lines.append(Line(name="random weights, the better pooling", x=layers, y=best, baseline=True))
    return lines


def _verdict(rows: Sequence[ProbeRow]) -> str:
    """Compare the best layer, the last one, and random weights, in words."""
    trained = [row for row in rows if row.weights == "trained"]
    random = [row for row in rows if row.weights == "random"]
    said = []
    for name, field in (("k-NN", "knn_top1"), ("the linear probe", "linear_top1")):
        if not trained:
            continue
        best, last = max(trained, key=lambda row: getattr(row, field)), max(row.layer for row in trained)
        at_last = max(getattr(row, field) for row in trained if row.layer == last)
        text = f"{name} is best at layer {best.layer} ({best.pooling}): {getattr(best, field):.2%}"
        text += (
            ", which is the last"
            if best.layer == last
            else f", against {at_last:.2%} at the last, layer {last}"
        )
        if random:
            text += f"; random weights reach {max(getattr(row, field) for row in random):.2%}"
        said.append(text)
    return "; ".join(said)[:1].upper() + "; ".join(said)[1:] + "."


def _table(rows: Sequence[ProbeRow]) -> Table:
    """Make the table; the best accuracies of the first weights are emphasised."""
    fields = ("knn_top1", "knn_top5", "linear_top1", "linear_top5")
    first = rows[0].weights
    best = {field: max(getattr(row, field) for row in rows if row.weights == first) for field in fields}

    def cell(row: ProbeRow, field: str) -> str:
        value = getattr(row, field)
        text = f"{value:.2%}"
        return strong(text) if row.weights == first and value == best[field] else text

    return Table(
        ["weights", "layer", "pooling", "k-NN top-1", "top-5", "linear top-1", "top-5"],
        [[row.weights, str(row.layer), row.pooling, *(cell(row, field) for field in fields)] for row in rows],
    )


def knn_sections(evaluations: Sequence[dict[str, Any]]) -> list[Section]:
    """Build the section about k-NN during pretraining, by step; none if there is no such evaluation."""
    if not evaluations:
        return []
    last = evaluations[-1]
    steps = [one["step"] for one in evaluations]
    layers = list(last["top1"])
    lines = [
        Line(name=f"layer {layer}", x=steps, y=[one["top1"].get(layer, float("nan")) for one in evaluations])
        for layer in layers
    ]
    figures = ", ".join(f"{last['top1'][layer]:.2%} at layer {layer}" for layer in layers)
    chart = Chart(title="k-NN, top-1, mean of the patches", lines=lines, percent=True, from_zero=True)
    blocks = [
        Text(
            f"After step {last['step']:,}: {figures}; {last['train_images']:,} training images, "
            f"{last['val_images']:,} to be judged by."
        ),
        Charts([chart_svg(chart)]),
        Text(LAST_LAYER),
        Text(NOT_THE_MEASURE),
    ]
    return [Section("k-NN while pretraining", blocks)]
