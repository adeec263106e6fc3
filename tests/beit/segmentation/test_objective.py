"""The segmentation objective: which pixels count, that parts of a batch add up, and that it learns."""

import numpy as np
import pytest
import torch

from beit.config import ModelConfig, OptimConfig, ViewConfig
from beit.images.pixels import normalise
from beit.objectives.optim import linear_learning_rate
from beit.segmentation.annotations import IGNORED
from beit.segmentation.model import Segmenter
from beit.segmentation.objective import SegmentObjective


def objective(head="upernet", steps=30):
    config = ModelConfig(image_size=32, patch_size=8, dim=16, depth=4, heads=2, drop_path=0.1)
    model = Segmenter(config, 3, head=head, channels=16, generator=torch.Generator().manual_seed(0))
    optim = OptimConfig(peak_lr=3e-3, min_lr=0, warmup_steps=3)
    return SegmentObjective(model, optim, ViewConfig(), layer_decay=0.75, total_steps=steps, seed=4)


def batch(count=4):
    """Images whose left and right halves have a brightness for each class; some pixels are ignored, and all
    pixels of one image.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 3, (count, 1, 2)), 16, 2).repeat(32, 1).astype(np.int16)
    views = (60 + 60 * labels[..., None] + rng.integers(-20, 20, (count, 32, 32, 3))).astype(np.uint8)
    labels[:, :3] = IGNORED
    labels[1] = IGNORED
    return {"patch_view": views, "labels": labels}


def tensors(host):
    return {name: torch.from_numpy(column) for name, column in host.items()}


def test_the_loss_is_the_cross_entropy_of_pixels_that_count_the_auxiliary_heads_times_two_fifths():
    trained, host = objective(), batch()
    trained.start_step(2)
    sums = trained(tensors(host))
    trained.start_step(2)
    pixels = normalise(torch.from_numpy(host["patch_view"]), ViewConfig())
    logits = trained.model.training_logits(pixels, generator=trained._generator)
    counted = torch.from_numpy(host["labels"] != IGNORED)
    true = torch.from_numpy(host["labels"]).long()[counted]
    main, auxiliary = (
        -each.log_softmax(1).movedim(1, -1)[counted].gather(1, true[:, None]).sum() for each in logits
    )
    torch.testing.assert_close(sums["loss"], main + 0.4 * auxiliary)
    assert trained.weight(host) == counted.sum() == 3 * 29 * 32
    assert sums["correct"] == (logits[0].movedim(1, -1)[counted].argmax(1) == true).sum()
    figures = trained.metrics(
        {name: value.detach().numpy() for name, value in sums.items()}, trained.weight(host)
    )
    assert figures["loss"] == pytest.approx(main.item() / (3 * 29 * 32), rel=1e-5)
    assert np.isnan(trained.metrics({"main": np.float32(0), "correct": np.int64(0)}, 0.0)["loss"])


def test_sums_of_parts_of_a_batch_are_those_of_the_whole():
    trained, host = objective().eval(), batch()
    whole = trained(tensors(host))
    parts = [
        trained(tensors({name: column[part] for name, column in host.items()}))
        for part in (slice(0, 3), slice(3, 4))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


@pytest.mark.parametrize("head", ["upernet", "setr-pup"])
def test_it_learns(head, tmp_path):
    trained, host = objective(head), batch()
    optimizer = trained.optimizer()
    accuracies = []
    for step in range(30):
        trained.start_step(step)
        for group in optimizer.param_groups:
            group["lr"] = trained.learning_rate(step) * group["lr_scale"]
        sums = trained(tensors(host))
        (sums["loss"] / trained.weight(host)).backward()
        optimizer.step()
        optimizer.zero_grad()
        accuracies.append(sums["correct"].item() / trained.weight(host))
    assert accuracies[-1] > 0.9 > 0.7 > accuracies[0]
    trained.save(tmp_path)
    other = objective(head)
    other.load(tmp_path)
    assert torch.equal(other.eval()(tensors(host))["loss"], trained.eval()(tensors(host))["loss"])


def test_the_rate_rises_and_falls_on_straight_lines_as_mmcvs_does():
    config = OptimConfig(peak_lr=7e-4, min_lr=0, warmup_steps=1500)
    rates = [linear_learning_rate(step, config, 160_000) for step in (0, 750, 1500, 80_000, 159_999)]
    decay = 1 - 750 / 160_000
    expected = [7e-10, 7e-4 * decay * (0.5 + 0.5e-6), 7e-4 * (1 - 1500 / 160_000), 3.5e-4, 7e-4 / 160_000]
    assert rates == pytest.approx(expected)
    assert linear_learning_rate(160_000, config, 160_000) == 0
