"""The report's part about a classifier: validation curves, accuracies and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.classification import majority_share
from pipelines.reports.charts import Line, line_chart
from pipelines.reports.page import listed_images, png_element

MOST_NAMED = 40
MOST_DRAWN = 2000
MOST_PAIRS = 10


def classification_section(evaluations: Sequence[dict[str, Any]], class_names: Sequence[str] | None) -> str:
    """HTML about a run's evaluations, by step; "" if there are none."""
    if not evaluations:
        return ""
    last = evaluations[-1]
    steps = [one["step"] for one in evaluations]
    shown = (("top1", "top-1"), ("top5", "top-5")) if last["classes"] > 5 else (("top1", "top-1"),)
    accuracy = [Line(name=label, x=steps, y=[one[key] for one in evaluations]) for key, label in shown]
    accuracy.append(
        Line(name="commonest class", x=steps, y=[majority_share(one) for one in evaluations], baseline=True)
    )
    loss = [Line(name="loss", x=steps, y=[one["loss"] for one in evaluations])]
    confusion = np.array(last["confusion"], np.int64).reshape(-1, 3)
    names = list(class_names) if class_names else [str(number) for number in range(last["classes"])]
    unread = last["unusable"]
    return (
        f"<h2>Validation</h2><p>{', '.join(f'{label} {last[key]:.2%}' for key, label in shown).capitalize()}, "  # noqa: E501
        f"loss {last['loss']:.3f} nats "
        f"after step {last['step']:,}, on {last['images']:,} images, each counted once. Naming the "
        "commonest class each time gives "
        f"{majority_share(last):.2%}; the standard error of top-1 on so many images is "
        f"{_standard_error(last):.2%}.</p>"
        f'<div class="charts"><figure>{line_chart("Validation accuracy", accuracy, percent=True)}</figure>'
        f"<figure>{line_chart('Validation loss (nats)', loss)}</figure></div>"
        + (
            f"<p>{len(unread):,} images could not be decoded and count nowhere:</p>{listed_images(unread)}"
            if unread
            else ""
        )
        + "<h2>Confusion</h2>"
        + (
            _matrix(confusion, names)
            if len(names) <= MOST_DRAWN
            else f"<p>{len(names):,} classes are more than a picture can show.</p>"
        )
        + f"<p>Most often taken for another: {escape('; '.join(_pairs(confusion, names)) or 'none')}.</p>"
    )


def _standard_error(found: dict[str, Any]) -> float:
    """Of the accuracy, for the images are a sample."""
    return float(np.sqrt(found["top1"] * (1 - found["top1"]) / max(1, found["images"])))


def _matrix(confusion: NDArray[np.int64], names: list[str]) -> str:
    from matplotlib.figure import Figure

    counts = np.zeros((len(names), len(names)), np.int64)
    counts[confusion[:, 0], confusion[:, 1]] = confusion[:, 2]
    images = counts.sum(1)
    share = np.ma.masked_where(
        np.repeat(images[:, None] == 0, len(names), 1), counts / np.maximum(1, images)[:, None]
    )
    figure = Figure(figsize=(6, 5.4), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    axes.set_facecolor("#e4e4e4")
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    words = (
        "Rows: the label, and how many images have it. Columns: the prediction. Each row adds up to 1; "
        "a grey one has no image."
    )
    return f"<p>{words}</p>" + png_element(buffer.getvalue(), "Confusion matrix")


def _pairs(confusion: NDArray[np.int64], names: list[str]) -> list[str]:
    """The commonest mistakes in words."""
    wrong = confusion[confusion[:, 0] != confusion[:, 1]]
    commonest = wrong[np.argsort(-wrong[:, 2], kind="stable")[:MOST_PAIRS]]
    return [f"{names[row]} for {names[column]} ({images:,})" for row, column, images in commonest.tolist()]
