"""Metrics of segmentation, against counting by hand and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics import classification

from beit.segmentation.annotations import IGNORED
from beit.segmentation.metrics import confusion, summarise


def cases(seed, classes=6):
    """Images of odd sizes with ignored pixels; class 5 occurs nowhere, class 4 is predicted only."""
    rng = np.random.default_rng(seed)
    for height, width in ((7, 5), (1, 13), (31, 17)):
        labels = rng.integers(IGNORED, 4, (height, width)).astype(np.int16)
        yield (
            labels,
            np.where(
                rng.random(labels.shape) < 0.5, labels.clip(0), rng.integers(0, classes - 1, labels.shape)
            ),
        )


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_counting_pixels_one_by_one(seed):
    result = summarise(sum(confusion(labels, predicted, 6) for labels, predicted in cases(seed)))
    true = np.concatenate([labels.ravel() for labels, _ in cases(seed)])
    guess = np.concatenate([predicted.ravel() for _, predicted in cases(seed)])[true != IGNORED]
    true = true[true != IGNORED]
    for number in range(5):
        both, either = (
            np.sum((true == number) & (guess == number)),
            np.sum((true == number) | (guess == number)),
        )
        assert result.iou[number] == both / either
    assert np.isnan(result.iou[5])
    assert np.isnan(result.accuracy[4:]).all()
    assert result.mean_iou == pytest.approx(result.iou[:5].mean())
    assert result.mean_accuracy == pytest.approx(
        np.mean([np.mean(guess[true == number] == number) for number in range(4)])
    )
    assert result.overall_accuracy == pytest.approx(np.mean(true == guess))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_torchmetrics(seed):
    options = {"num_classes": 6, "ignore_index": IGNORED}
    iou = classification.MulticlassJaccardIndex(average="macro", **options)
    recall = classification.MulticlassAccuracy(average="none", **options)
    overall = classification.MulticlassAccuracy(average="micro", **options)
    for labels, predicted in cases(seed):
        for metric in (iou, recall, overall):
            metric.update(
                torch.from_numpy(predicted.astype(np.int64)).flatten(),
                torch.from_numpy(labels.astype(np.int64)).flatten(),
            )
    result = summarise(sum(confusion(labels, predicted, 6) for labels, predicted in cases(seed)))
    assert result.mean_iou == pytest.approx(iou.compute().item(), abs=1e-6)
    assert result.overall_accuracy == pytest.approx(overall.compute().item(), abs=1e-6)
    np.testing.assert_allclose(result.accuracy[:4], recall.compute()[:4], atol=1e-6)


def test_nothing_counted_is_not_a_number_and_a_wrong_class_is_refused():
    nothing = summarise(confusion(np.full((2, 2), IGNORED), np.zeros((2, 2), int), 3))
    assert np.isnan([nothing.mean_iou, nothing.mean_accuracy, nothing.overall_accuracy]).all()
    with pytest.raises(ValueError, match="prediction is not between 0 and 2"):
        confusion(np.zeros((2, 2), int), np.full((2, 2), 3), 3)
    with pytest.raises(ValueError, match="differ in size"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 3)
