"""Report sections about a segmenter: validation curves, the metrics of every class, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.evaluation.every_image import FOLDER
from pipelines.reports.charts import Chart, Line, chart_svg
from pipelines.reports.page import Block, Charts, Picture, Section, Table, Text, unusable_images
from pipelines.runs.evaluations import alike

CURVES = (
    ("mean_iou", "mean IoU"),
    ("mean_accuracy", "mean accuracy"),
    ("overall_accuracy", "overall accuracy"),
)


def segmentation_sections(
    run: str, evaluations: Sequence[dict[str, Any]], class_names: Sequence[str] | None
) -> list[Section]:
    """Build the sections for a run's evaluations, by step; none if there are no evaluations.

    Args:
        run: Run folder; its pictures are read.
        evaluations: As `evaluations.read` returns them. A step can have several, of different variants.
        class_names: K names. None: classes are shown by number.
    """
    if not evaluations:
        return []
    shown = alike(evaluations)[-1]
    names = list(class_names) if class_names else [str(number) for number in range(len(shown["iou"]))]
    sections = [_validation(evaluations), _classes(shown, names)]
    return sections if shown["pictures"] is None else [*sections, _pictures(run, shown["pictures"])]


def _validation(evaluations: Sequence[dict[str, Any]]) -> Section:
    last = evaluations[-1]["step"]
    curves = alike(evaluations)
    shown = curves[-1]
    steps = [one["step"] for one in curves]
    lines = [Line(name=label, x=steps, y=[one[key] for one in curves]) for key, label in CURVES]
    blocks: list[Block] = [
        Text(
            f"Mean IoU {shown['mean_iou']:.2%} after step {last:,}, over all pixels that count of "
            f"{shown['images']:,} images, each counted once. Pixels are added up over the whole set before "
            "shares are computed."
        ),
        Table(
            ["tested", *(label for _, label in CURVES)],
            [
                [_way(one["test"]), *(f"{one[key]:.2%}" for key, _ in CURVES)]
                for one in evaluations
                if one["step"] == last
            ],
        ),
        Charts([chart_svg(Chart(title="Validation", lines=lines, percent=True))]),
    ]
    if unusable := shown["unusable"]:
        blocks += [
            Text(f"{len(unusable):,} images or annotations could not be used and do not count:"),
            unusable_images(unusable),
        ]
    return Section("Validation", blocks)


def _way(test: dict[str, Any]) -> str:
    """Describe how the segmenter was evaluated: scales, mirroring, windows."""
    scales = (
        "one scale"
        if test["ratios"] == [1.0]
        else "scales " + ", ".join(f"{ratio:g}" for ratio in test["ratios"])
    )
    stride = f", windows {test['stride']} px apart" if test["stride"] else ""
    return f"{scales}{', mirrored too' if test['flip'] else ''}{stride}"


def _classes(found: dict[str, Any], names: Sequence[str]) -> Section:
    """Make a row for each class: its share of the pixels, IoU, accuracy, and the class that it is most often
    mistaken for.
    """
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
        shares = ["" if value is None else f"{value:.1%}" for value in figures]
        rows.append([names[number], *shares, taken])
    titles = ["class", "share of the pixels", "IoU", "accuracy", "most often taken for"]
    return Section("Classes", [Table(titles, rows)])


def _pictures(run: str, name: str) -> Section:
    title = "Image, truth and prediction"
    sheet = storage.read_bytes(storage.join(run, FOLDER, name))
    return Section(
        title,
        [Text("Images of the validation set, drawn once at random."), Picture(title=title, image=sheet)],
    )
