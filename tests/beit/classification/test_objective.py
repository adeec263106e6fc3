"""The classification objective: which images count, what is random and when, and that it learns."""

import numpy as np
import pytest
import torch

from beit.classification.config import MixConfig
from beit.classification.mixing import draw_mix
from beit.classification.model import Classifier
from beit.classification.objective import MIX, ClassifyObjective
from beit.config import ModelConfig, OptimConfig, ViewConfig
from beit.images.pixels import normalise
from beit.objectives.base import derive

MODEL = ModelConfig(image_size=16, patch_size=8, dim=32, depth=2, heads=2, drop_path=0.0)
PLAIN = MixConfig(mixup=0, cutmix=0, smoothing=0.1)


def objective(mix=PLAIN, *, drop_path=0.0, head_scale=1.0, **options):
    config = ModelConfig(image_size=16, patch_size=8, dim=32, depth=2, heads=2, drop_path=drop_path)
    model = Classifier(config, 3, head_scale=head_scale, generator=torch.Generator().manual_seed(0))
    arguments = {"layer_decay": 0.75, "total_steps": 30, "seed": 4, **options}
    return ClassifyObjective(
        model, OptimConfig(peak_lr=3e-3, min_lr=0, warmup_steps=3), ViewConfig(), mix, **arguments
    )


def batch(count=12, seed=0):
    """Images whose brightness is their class, one of them broken."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    views = (60 + 60 * label[:, None, None, None] + rng.integers(-20, 20, (count, 16, 16, 3))).astype(
        np.uint8
    )
    status = np.zeros(count, np.uint8)
    status[2] = 3
    views[2] = 0
    return {"patch_view": views, "label": label, "erase": np.zeros((count, 4), np.int16), "status": status}


def tensors(host):
    return {name: torch.from_numpy(column) for name, column in host.items()}


def test_the_loss_is_the_smoothed_cross_entropy_summed_over_the_decoded_images():
    trained, host = objective(), batch()
    sums = trained(tensors(host))
    good = host["status"] == 0
    pixels = normalise(torch.from_numpy(host["patch_view"]), ViewConfig())
    logits, labels = trained.model(pixels)[good], torch.from_numpy(host["label"])[good]
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(sums["loss"], expected)
    assert sums["correct"] == (logits.argmax(1) == labels).sum()
    assert trained.weight(host) == 11


@pytest.mark.parametrize("mix", [MixConfig(cutmix=0), MixConfig(mixup=0)])
def test_mixed_images_count_for_both_their_labels_as_they_share_the_pixels(mix):
    trained, host = objective(mix, head_scale=30), batch()
    trained.start_step(3)
    sums = trained(tensors(host))
    drawn = draw_mix(np.random.default_rng(derive(4, MIX, 3, 0)), mix, 16)
    pixels, targets = (
        normalise(torch.from_numpy(host["patch_view"]), ViewConfig()),
        torch.eye(3)[torch.from_numpy(host["label"])],
    )
    inputs, wanted = pixels.clone(), targets.clone()
    for image in range(12):
        partner = 11 - image
        if host["status"][partner]:
            continue
        wanted[image] = drawn.share * targets[image] + (1 - drawn.share) * targets[partner]
        if drawn.box is None:
            inputs[image] = drawn.share * pixels[image] + (1 - drawn.share) * pixels[partner]
        else:
            top, bottom, left, right = drawn.box
            inputs[image, :, top:bottom, left:right] = pixels[partner, :, top:bottom, left:right]
    good = host["status"] == 0
    logits, wanted = trained.model(inputs)[good], wanted[good]
    expected = torch.nn.functional.cross_entropy(logits, wanted, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(sums["loss"], expected)
    assert sums["correct"] == (logits.argmax(1) == wanted.argmax(1)).sum()
    assert 0.05 < drawn.share < 0.95


def test_a_broken_image_changes_no_gradient_though_images_are_mixed():
    host = batch()
    mixed = MixConfig(mixup=0.8, cutmix=0, smoothing=0.1)
    gradients = []
    for noise in (0, 200):
        trained = objective(mixed)
        host["patch_view"][2] = noise
        host["label"][2] = noise > 0
        trained.start_step(7)
        trained(tensors(host))["loss"].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained.model.parameters()]))
    assert torch.equal(*gradients)


def test_a_step_repeats_itself_and_no_other_step():
    host = batch()
    host["erase"][:4] = (2, 3, 6, 5)
    trained = objective(MixConfig(), drop_path=0.3)
    losses = []
    for step in (5, 6, 5):
        trained.start_step(step)
        losses.append([trained(tensors(host))["loss"].item() for _ in range(2)])  # two micro-batches
    assert losses[0] == losses[2]
    assert len({*losses[0], *losses[1]}) == 4


def test_it_learns_to_tell_brightness_and_comes_back_from_its_checkpoint(tmp_path):
    trained = objective(MixConfig(mixup=0.1, cutmix=0))
    optimizer = trained.optimizer()
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = trained.learning_rate(step) * group["lr_scale"]
        trained.start_step(step)
        optimizer.zero_grad()
        (trained(tensors(batch(seed=step)))["loss"] / 11).backward()
        optimizer.step()
    unseen = batch(count=60, seed=100)
    trained.eval()
    sums = trained(tensors(unseen))
    assert (
        trained.metrics({name: value.detach().numpy() for name, value in sums.items()}, 59)["accuracy"] > 0.9
    )
    trained.save(tmp_path)
    again = objective()
    again.load(tmp_path)
    again.eval()
    assert torch.equal(again(tensors(unseen))["loss"], sums["loss"])


@pytest.mark.parametrize("images", [1, 2])
def test_the_smallest_batches_can_be_mixed(images):
    host = {name: column[:images] for name, column in batch().items()}
    assert torch.isfinite(objective(MixConfig())(tensors(host))["loss"])
