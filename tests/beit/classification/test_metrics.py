"""Counts over a set of images, against torchmetrics and plain numpy."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from beit.classification.metrics import judge, summarise


def judged(logits, labels, classes, *, batch):
    parts = [
        judge(logits[start : start + batch], labels[start : start + batch])
        for start in range(0, len(labels), batch)
    ]
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return summarise(labels.numpy(), columns, classes)


@pytest.mark.parametrize(("images", "classes", "batch"), [(1, 6, 1), (101, 7, 10), (300, 100, 64)])
def test_accuracies_and_confusion_are_those_of_torchmetrics_whatever_the_batches(images, classes, batch):
    generator = torch.Generator().manual_seed(images)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator) + 2 * torch.nn.functional.one_hot(
        labels, classes
    )
    found = judged(logits, labels, classes, batch=batch)
    for top, value in ((1, found.top1), (5, found.top5)):
        metric = MulticlassAccuracy(num_classes=classes, top_k=top, average="micro")
        assert value == pytest.approx(metric(logits, labels).item())
    matrix = MulticlassConfusionMatrix(num_classes=classes)(logits, labels).numpy()
    assert found.confusion.tolist() == [
        [row, column, matrix[row, column]] for row, column in zip(*matrix.nonzero(), strict=True)
    ]
    exponents = np.exp(logits.numpy().astype(np.float64))
    own = exponents[np.arange(images), labels.numpy()]
    assert found.loss == pytest.approx(-np.log(own / exponents.sum(1)).mean())
    assert found.images == images


def test_equal_logits_are_ranked_by_number_so_that_saying_nothing_is_chance():
    labels = torch.arange(10)
    found = judged(torch.zeros(10, 10), labels, 10, batch=3)
    assert (found.top1, found.top5) == (0.1, 0.5)
    assert found.confusion.tolist() == [[label, 0, 1] for label in range(10)]


def test_logits_that_are_not_numbers_are_never_right():
    labels = torch.arange(10)
    found = judged(torch.full((10, 10), torch.nan), labels, 10, batch=4)
    assert (found.top1, found.top5) == (0, 0)
    one = torch.eye(10)
    one[3, 7] = torch.nan
    assert judged(one, labels, 10, batch=10).top1 == 0.9, (
        "a number is not known to be greater than what is none"
    )


def test_fewer_than_five_classes_are_always_within_the_first_five():
    found = judged(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0]), 2, batch=2)
    assert (found.top1, found.top5) == (0.5, 1.0)


def test_many_classes_take_no_more_room_than_the_images():
    labels = torch.arange(21_840, 21_836, -1)
    found = judged(torch.nn.functional.one_hot(labels, 21_841).float(), labels, 21_841, batch=4)
    assert found.confusion.tolist() == [[label, label, 1] for label in range(21_837, 21_841)]


def test_a_set_without_images_has_no_accuracy():
    empty = {name: np.zeros(0, np.int64) for name in ("prediction", "rank", "loss")}
    found = summarise(np.zeros(0, np.int64), empty, 3)
    assert found.images == 0
    assert found.confusion.shape == (0, 3)
    assert np.isnan(found.top1)
