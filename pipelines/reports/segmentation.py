"""The report's part about a segmenter: validation curves, the figures of every class, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.evaluation.every_image import FOLDER
from pipelines.reports.charts import Line, line_chart
from pipelines.reports.page import listed_images, png_element
from pipelines.runs.evaluations import alike

CURVES = (
    ("mean_iou", "mean IoU"),
    ("mean_accuracy", "mean accuracy"),
    ("overall_accuracy", "overall accuracy"),
)


def segmentation_section(
    run: str, evaluations: Sequence[dict[str, Any]], class_names: Sequence[str] | None
) -> str:
    """HTML about a run's evaluations, by step; "" if there are none.

    Args:
        run: Run folder; its pictures are read.
        evaluations: As `evaluations.read` gives them; of one step there can be several, tested in different
            ways.
        class_names: K names. None: numbers.
    """
    if not evaluations:
        return ""
    last = evaluations[-1]["step"]
    final = [one for one in evaluations if one["step"] == last]
    curves = alike(evaluations)
    shown = curves[-1]
    steps = [one["step"] for one in curves]
    lines = [Line(name=label, x=steps, y=[one[key] for one in curves]) for key, label in CURVES]
    names = list(class_names) if class_names else [str(number) for number in range(len(shown["iou"]))]
    return (
        f"<h2>Validation</h2><p>Mean IoU {shown['mean_iou']:.2%} after step {last:,}, over all pixels that "
        f"count of {shown['images']:,} "
        "images, each counted once: pixels are added up over the whole set before anything is divided.</p>"
        + _ways(final)
        + f'<div class="charts"><figure>{line_chart("Validation", lines, percent=True)}</figure></div>'
        + _unusable(shown["unusable"])
        + _classes(shown, names)
        + _pictures(run, shown)
    )


def _ways(final: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(_way(one['test']))}</td>"
        + "".join(f"<td>{one[key]:.2%}</td>" for key, _ in CURVES)
        + "</tr>"
        for one in final
    )
    head = "".join(f"<th>{label}</th>" for label in ("tested", *(label for _, label in CURVES)))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _way(test: dict[str, Any]) -> str:
    """How was tested, in words."""
    scales = (
        "one scale"
        if test["ratios"] == [1.0]
        else "scales " + ", ".join(f"{ratio:g}" for ratio in test["ratios"])
    )
    stride = f", windows {test['stride']} px apart" if test["stride"] else ""
    return f"{scales}{', mirrored too' if test['flip'] else ''}{stride}"


def _unusable(images: Sequence[tuple[str, str]]) -> str:
    if not images:
        return ""
    return (
        f"<p>{len(images):,} images or annotations could not be used and count "
        f"nowhere:</p>{listed_images(images)}"
    )


def _classes(found: dict[str, Any], names: Sequence[str]) -> str:
    """A row for each class: how common it is, IoU, accuracy, and what it is taken for most."""
    confusion = np.array(found["confusion"])
    share = confusion.sum(1) / max(1, confusion.sum())
    rows = []
    for number in np.argsort(-share, kind="stable").tolist():
        wrong = confusion[number] * (np.arange(len(names)) != number)
        taken = (
            names[int(wrong.argmax())] + f" {wrong.max() / confusion[number].sum():.0%}"
            if wrong.any()
            else ""
        )
        figures = (share[number], found["iou"][number], found["accuracy"][number])
        cells = "".join(f"<td>{'' if value is None else f'{value:.1%}'}</td>" for value in figures)
        rows.append(f"<tr><td>{escape(names[number])}</td>{cells}<td>{escape(taken)}</td></tr>")
    head = "".join(
        f"<th>{label}</th>"
        for label in ("class", "share of the pixels", "IoU", "accuracy", "most often taken for")
    )
    return f"<h2>Classes</h2><table><tr>{head}</tr>{''.join(rows)}</table>"


def _pictures(run: str, found: dict[str, Any]) -> str:
    if found["pictures"] is None:
        return ""
    sheet = storage.read_bytes(storage.join(run, FOLDER, found["pictures"]))
    return (
        "<h2>Image, truth and prediction</h2><p>Images of the validation set, drawn once at random.</p>"
        + png_element(sheet, "Image, truth and prediction")
    )
