"""The report's part about a classifier: validation curves, accuracies and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.charts import Line, line_chart
from pipelines.page import listed_images, png_element

MOST_NAMED = 40
MOST_DRAWN = 2000
MOST_PAIRS = 10


def classification_section(evaluations: Sequence[dict[str, Any]], class_names: Sequence[str] | None) -> str:
    """HTML about a run's evaluations, by step; "" if there are none."""
    if not evaluations:
        return ""
    last = evaluations[-1]
    steps = [one["step"] for one in evaluations]
    accuracy = [Line(name=label, x=steps, y=[one[key] for one in evaluations]) for key, label in (("top1", "top-1"), ("top5", "top-5"))]
    loss = [Line(name="loss", x=steps, y=[one["loss"] for one in evaluations])]
    confusion = np.array(last["confusion"], np.int64).reshape(-1, 3)
    names = list(class_names) if class_names else [str(number) for number in range(last["classes"])]
    unread = last["unusable"]
    return (
        f"<h2>Validation</h2><p>Top-1 {last['top1']:.2%}, top-5 {last['top5']:.2%}, loss {last['loss']:.3f} nats after step "
        f"{last['step']:,}, on {last['images']:,} images, each counted once.</p>"
        f'<div class="charts"><figure>{line_chart("Validation accuracy", accuracy, percent=True)}</figure>'
        f"<figure>{line_chart('Validation loss (nats)', loss)}</figure></div>"
        + (f"<p>{len(unread):,} images could not be decoded and count nowhere:</p>{listed_images(unread)}" if unread else "")
        + "<h2>Confusion</h2>"
        + (_matrix(confusion, names) if len(names) <= MOST_DRAWN else f"<p>{len(names):,} classes are more than a picture can show.</p>")
        + f"<p>Most often taken for another: {escape('; '.join(_pairs(confusion, names)) or 'none')}.</p>"
    )


def _matrix(confusion: NDArray[np.int64], names: list[str]) -> str:
    from matplotlib.figure import Figure

    counts = np.zeros((len(names), len(names)), np.int64)
    counts[confusion[:, 0], confusion[:, 1]] = confusion[:, 2]
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure = Figure(figsize=(6, 5.4), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    picture = axes.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return "<p>Rows: the label. Columns: the prediction. Each row adds up to 1.</p>" + png_element(buffer.getvalue(), "Confusion matrix")


def _pairs(confusion: NDArray[np.int64], names: list[str]) -> list[str]:
    """The commonest mistakes in words."""
    wrong = confusion[confusion[:, 0] != confusion[:, 1]]
    commonest = wrong[np.argsort(-wrong[:, 2], kind="stable")[:MOST_PAIRS]]
    return [f"{names[row]} for {names[column]} ({images:,})" for row, column, images in commonest.tolist()]
