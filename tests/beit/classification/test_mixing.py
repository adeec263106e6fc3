"""Mixup and cutmix against the definitions of their papers."""

import numpy as np
import pytest
import torch

from beit.classification.config import MixConfig
from beit.classification.mixing import Mix, draw_mix, mix_pixels, mixed_cross_entropy


def test_half_of_the_batches_are_cut_and_the_shares_follow_their_distributions():
    drawn = [draw_mix(np.random.default_rng(seed), MixConfig(), 224) for seed in range(4000)]
    cut = np.array([mix.share for mix in drawn if mix.box])
    blended = np.array([mix.share for mix in drawn if not mix.box])
    assert len(cut) / len(drawn) == pytest.approx(0.5, abs=0.025)
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 * 0.8 + 1)).
    assert blended.mean() == pytest.approx(0.5, abs=0.02)
    assert blended.var() == pytest.approx(1 / 10.4, abs=0.005)
    # Rectangles reach beyond the image, so less is cut out than the 1/2 of Beta(1, 1).
    assert 0.6 < cut.mean() < 0.75
    for mix in drawn:
        if mix.box:
            top, bottom, left, right = mix.box
            assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 224**2)


def test_nothing_is_mixed_without_alphas_and_one_alpha_is_always_used():
    rngs = [np.random.default_rng(seed) for seed in range(50)]
    assert all(draw_mix(rng, MixConfig(mixup=0, cutmix=0), 8) is None for rng in rngs)
    assert all(draw_mix(rng, MixConfig(mixup=0), 8).box is not None for rng in rngs)
    assert all(draw_mix(rng, MixConfig(cutmix=0), 8).box is None for rng in rngs)


@pytest.mark.parametrize("mix", [Mix(share=0.7, box=None), Mix(share=1 - 6 / 64, box=(1, 4, 5, 7))])
def test_pixels_are_mixed_with_the_reversed_batch_but_never_with_a_broken_image(mix):
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    usable = torch.tensor([True, True, True, False])
    mixed, own = mix_pixels(pixels, usable, mix)
    assert own.tolist() == pytest.approx([1.0, mix.share, mix.share, mix.share])
    torch.testing.assert_close(mixed[0], pixels[0])
    if mix.box is None:
        expected = 0.7 * pixels[1] + 0.3 * pixels[2]
    else:
        expected = pixels[1].clone()
        expected[:, 1:4, 5:7] = pixels[2, :, 1:4, 5:7]
    torch.testing.assert_close(mixed[1], expected)


def test_the_loss_is_the_cross_entropy_against_smoothed_mixed_targets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    labels, own = torch.tensor([0, 4, 2, 2, 1, 3]), torch.rand(6, generator=generator)
    sharp = torch.nn.functional.one_hot(labels, 5).float() * 0.9 + 0.1 / 5
    targets = own[:, None] * sharp + (1 - own[:, None]) * sharp.flip(0)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, own, 0.1), expected)
