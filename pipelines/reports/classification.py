"""Report sections about a classifier: validation curves, accuracies and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.classification import majority_share
from pipelines.reports.chart_style import GRID, as_png, chart_style
from pipelines.reports.charts import Chart, Line, chart_svg
from pipelines.reports.page import Block, Charts, Picture, Section, Text, unusable_images

MOST_NAMED = 40
MOST_DRAWN = 2000
MOST_PAIRS = 10


def classification_sections(
    evaluations: Sequence[dict[str, Any]], class_names: Sequence[str] | None
) -> list[Section]:
    """Build the sections for a run's evaluations, by step; none if there are no evaluations."""
    if not evaluations:
        return []
    last = evaluations[-1]
    names = list(class_names) if class_names else [str(number) for number in range(last["classes"])]
    return [_validation(evaluations), _confusion(last, names)]


def _validation(evaluations: Sequence[dict[str, Any]]) -> Section:
    last = evaluations[-1]
    steps = [one["step"] for one in evaluations]
    shown = (("top1", "top-1"), ("top5", "top-5")) if last["classes"] > 5 else (("top1", "top-1"),)
    accuracy = [Line(name=label, x=steps, y=[one[key] for one in evaluations]) for key, label in shown]
    accuracy.append(
        Line(name="commonest class", x=steps, y=[majority_share(one) for one in evaluations], baseline=True)
    )
    loss = [Line(name="loss", x=steps, y=[one["loss"] for one in evaluations])]
    accuracies = ", ".join(f"{label} {last[key]:.2%}" for key, label in shown).capitalize()
    blocks: list[Block] = [
        Text(
            f"{accuracies}, loss {last['loss']:.3f} nats after step {last['step']:,}, on "
            f"{last['images']:,} images, each counted once. Always predicting the commonest class gives "
            f"{majority_share(last):.2%}; the standard error of top-1 on this number of images is "
            f"{_standard_error(last):.2%}."
        ),
        Charts(
            [
                chart_svg(Chart(title="Validation accuracy", lines=accuracy, percent=True)),
                chart_svg(Chart(title="Validation loss (nats)", lines=loss)),
            ]
        ),
    ]
    if unread := last["unusable"]:
        blocks += [
            Text(f"{len(unread):,} images could not be decoded and do not count:"),
            unusable_images(unread),
        ]
    return Section("Validation", blocks)


def _standard_error(found: dict[str, Any]) -> float:
    """The standard error of the accuracy: the images are a sample."""
    return float(np.sqrt(found["top1"] * (1 - found["top1"]) / max(1, found["images"])))


def _confusion(found: dict[str, Any], names: list[str]) -> Section:
    confusion = np.array(found["confusion"], np.int64).reshape(-1, 3)
    blocks: list[Block]
    if len(names) > MOST_DRAWN:
        blocks = [Text(f"{len(names):,} classes are more than a picture can show.")]
    else:
        blocks = [
            Text(
                "Rows: the label, and how many images have it. Columns: the prediction. Each row adds up "
                "to 1; a grey one has no image."
            ),
            Picture(title="Confusion matrix", image=_matrix(confusion, names)),
        ]
    pairs = "; ".join(_pairs(confusion, names)) or "none"
    return Section("Confusion", [*blocks, Text(f"Most often taken for another: {pairs}.")])


@chart_style()
def _matrix(confusion: NDArray[np.int64], names: list[str]) -> bytes:
    """Draw the confusion matrix as a PNG."""
    from matplotlib.figure import Figure

    counts = np.zeros((len(names), len(names)), np.int64)
    counts[confusion[:, 0], confusion[:, 1]] = confusion[:, 2]
    images = counts.sum(1)
    share = np.ma.masked_where(
        np.repeat(images[:, None] == 0, len(names), 1), counts / np.maximum(1, images)[:, None]
    )
    figure = Figure(figsize=(6, 5.4))
    axes = figure.add_subplot()
    axes.set_facecolor(GRID)
    picture = axes.imshow(
        share, vmin=0, vmax=max(0.01, float(share.max())), cmap="Blues", interpolation="nearest"
    )
    figure.colorbar(picture, ax=axes, shrink=0.8)
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(
            range(len(names)),
            [f"{name} ({count:,})" for name, count in zip(names, images.tolist(), strict=True)],
            fontsize=7,
        )
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    return as_png(figure)


def _pairs(confusion: NDArray[np.int64], names: list[str]) -> list[str]:
    """Name the commonest mistakes."""
    wrong = confusion[confusion[:, 0] != confusion[:, 1]]
    commonest = wrong[np.argsort(-wrong[:, 2], kind="stable")[:MOST_PAIRS]]
    return [f"{names[row]} for {names[column]} ({images:,})" for row, column, images in commonest.tolist()]
