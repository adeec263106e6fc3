"""IoU and accuracy of a segmenter, from pixel counts over a whole set (not averaged over images)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.segmentation.annotations import IGNORED


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Count an image's pixels by true class (row) and predicted class (column), int64 [K, K].

    The counts of several images can be added up.

    Args:
        labels: [H, W]: classes from 0, or IGNORED for pixels that do not count.
        predicted: [H, W]: classes from 0.
        classes: K.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape} differ in size")
    counted = labels != IGNORED
    true, guessed = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, numbers in (("label", true), ("prediction", guessed)):
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(
                f"a {name} is not between 0 and {classes - 1}: {numbers.min()} to {numbers.max()}"
            )
    return (
        np.bincount(true * classes + guessed, minlength=classes**2).reshape(classes, classes).astype(np.int64)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The result of a segmenter on a set of images."""

    iou: NDArray[np.float64]
    """[K]: intersection over union: correctly predicted pixels of a class, as a share of the pixels that have
    the class or are predicted to have it. NaN: there are none."""

    accuracy: NDArray[np.float64]
    """[K]: share of a class's pixels that are predicted correctly. NaN: the class does not occur."""

    mean_iou: float
    """Mean of `iou` over the classes where it is defined."""

    mean_accuracy: float
    """Mean of `accuracy` over the classes that occur."""

    overall_accuracy: float
    """Share of all pixels that are predicted correctly."""

    confusion: NDArray[np.int64]
    """int64 [K, K]: pixels by true class (row) and predicted class (column)."""


def summarise(confusion: NDArray[np.int64]) -> Segmentation:
    """Compute the metrics from the counts of `confusion`, int64 [K, K], added up over a set.

    Undefined values are NaN, and means leave them out.
    """
    right = np.diag(confusion).astype(np.float64)
    of_class, guessed = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = right / (of_class + guessed - right), right / of_class
        overall = right.sum() / np.float64(of_class.sum())
    return Segmentation(
        iou=iou,
        accuracy=accuracy,
        mean_iou=_mean(iou),
        mean_accuracy=_mean(accuracy),
        overall_accuracy=float(overall),
        confusion=confusion,
    )


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
