"""Positions for another image size, against SciPy's splines and the published figures."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from beit.classification.model import Classifier
from beit.config import ModelConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.vit.checkpoints import save_model
from beit.vit.resolution import (
    at_size,
    growth,
    offset_weights,
    resample_absolute,
    resample_table,
    spline_weights,
)

PAPER = ModelConfig(image_size=64, dim=24, depth=2, heads=3)
RELEASED = dataclasses.replace(PAPER, position="relative-per-block", layer_scale=0.1)


@pytest.mark.parametrize(
    ("target", "q"), [(31, 1.02349), (39, 1.06097), (47, 1.09031), (63, 1.13492), (79, 1.16850)]
)
def test_steps_between_offsets_grow_by_the_authors_ratios(target, q):
    assert growth(27, target) == pytest.approx(q, abs=6e-6)


@pytest.mark.parametrize(
    ("source", "target"),
    [((14, 14), (24, 24)), ((14, 14), (40, 40)), ((8, 8), (5, 5)), ((4, 4), (6, 6)), ((6, 8), (9, 7))],
)
def test_tables_are_resampled_as_scipys_bicubic_spline_does(source, target):
    rng = np.random.default_rng(0)
    sides = [2 * side - 1 for side in source]
    table = rng.normal(size=(sides[0] * sides[1] + 3, 2))

    def places(old: int, new: int) -> list[float]:
        """The positions of the old offsets, counted step by step as the authors do."""
        if old == new:
            return [float(x) for x in range(-(old // 2), old // 2 + 1)]
        left, right, here, positive = 1.01, 1.5, 1.0, []
        while right - left > 1e-6:
            q = (left + right) / 2
            left, right = (left, q) if (1 - q ** (old // 2)) / (1 - q) > new // 2 else (q, right)
        for number in range(old // 2):
            positive.append(here)
            here += q ** (number + 1)
        return [-x for x in reversed(positive)] + [0.0, *positive]

    y, x = (places(old, 2 * side - 1) for old, side in zip(sides, target, strict=True))
    wanted = [np.arange(1 - side, side, dtype=float) for side in target]
    expected = np.stack(
        [RectBivariateSpline(y, x, table[:-3, head].reshape(sides))(*wanted).ravel() for head in range(2)], -1
    )
    ours = resample_table(torch.from_numpy(table), source, target).numpy()
    np.testing.assert_allclose(ours[:-3], expected, atol=1e-10)
    assert np.array_equal(ours[-3:], table[-3:])


def test_near_offsets_keep_their_values():
    # The old offsets 0, 1 and -1 are at the new ones.
    weights = offset_weights(27, 47)
    for step in (-1, 0, 1):
        row = np.zeros(27)
        row[13 + step] = 1
        np.testing.assert_allclose(weights[23 + step], row, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_the_spline_draws_every_cubic_that_its_points_determine(count):
    points = np.cumsum(np.random.default_rng(1).uniform(0.5, 2, count))
    at = np.linspace(points[0], points[-1], 30)
    polynomial = np.polynomial.Polynomial([1, -2, 0.5, 0.25][: min(4, count)])
    np.testing.assert_allclose(spline_weights(points, at) @ polynomial(points), polynomial(at), atol=1e-9)
    np.testing.assert_allclose(
        spline_weights(points, np.array([points[-1] + 5])) @ polynomial(points), polynomial(points[-1:])
    )


def test_absolute_positions_are_resized_by_the_bicubic_kernel_with_pixels_centred():
    def kernel(old: int, new: int) -> np.ndarray:
        """Keys's cubic convolution with torch's a = -0.75, old values repeated at the border."""
        a, weights = -0.75, np.zeros((new, old))
        for row in range(new):
            centre = (row + 0.5) * old / new - 0.5
            for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                d = abs(centre - tap)
                inner, outer = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
                weights[row, min(max(tap, 0), old - 1)] += inner if d <= 1 else outer
        return weights

    positions = torch.randn(1, 1 + 48, 5, generator=torch.Generator().manual_seed(0))
    expected = np.einsum(
        "yu,xv,uvd->yxd", kernel(6, 9), kernel(8, 5), positions[0, 1:].reshape(6, 8, 5).numpy()
    )
    resized = resample_absolute(positions, (6, 8), (9, 5))
    assert torch.equal(resized[:, 0], positions[:, 0])
    np.testing.assert_allclose(resized[0, 1:].numpy(), expected.reshape(45, 5), atol=1e-5)


@pytest.mark.parametrize("config", [PAPER, RELEASED], ids=["paper", "released"])
def test_a_model_takes_images_of_another_size_and_the_first_one_stays(config, tmp_path):
    model = Classifier(config, 5, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    square = torch.randn(1, 3, 64, 64)
    before = model(square)
    wide = at_size(model, 48, 96)
    assert wide(torch.randn(2, 3, 48, 96)).shape == (2, 5)
    assert wide.grid == (3, 6)
    assert wide.head.weight.data_ptr() == model.head.weight.data_ptr(), "only positions cost memory"
    assert torch.equal(model(square), before)
    assert at_size(model, 64, 64) is model
    larger = at_size(model, 96, 96)
    assert larger.config == dataclasses.replace(config, image_size=96)
    save_model(larger, tmp_path / "square")
    assert torch.equal(
        load_model(tmp_path / "square")(torch.ones(1, 3, 96, 96)), larger(torch.ones(1, 3, 96, 96))
    )
    with pytest.raises(ValueError, match="positions are for 3 x 6 patches"):
        save_model(wide, tmp_path / "wide")
    with pytest.raises(UserError, match="50 x 64 pixels is not made of patches of 16"):
        at_size(model, 50, 64)


def test_turning_a_wide_image_on_its_side_turns_what_its_model_sees():
    # A table that is symmetric in rows and columns makes attention indifferent to transposing; so must the
    # model of the wide size be.
    model = Classifier(RELEASED, 5, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for block in model.blocks:
            table = torch.randn(7, 7, 3, generator=torch.Generator().manual_seed(2))
            block.attn.relative_position_bias_table[:-3] = ((table + table.transpose(0, 1)) * 5).flatten(0, 1)
        weight = model.patch_embed.proj.weight
        weight.copy_((weight + weight.transpose(2, 3)) / 2)
    wide = torch.randn(1, 3, 48, 96, generator=torch.Generator().manual_seed(3))
    ours = at_size(model, 48, 96).pooled(wide)
    turned = at_size(model, 96, 48).pooled(wide.transpose(2, 3))
    torch.testing.assert_close(ours, turned, rtol=1e-4, atol=1e-5)
