import re

import numpy as np
import pytest

from beit.config import MaskConfig
from beit.errors import UserError
from beit.pretraining.masking import MASKS, blockwise_mask, check_mask, draw_mask, random_mask, register_mask


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(0)
    return np.stack([blockwise_mask(rng, grid=14, budget=75, min_block=16) for _ in range(20_000)])


def test_number_of_hidden_patches_is_distributed_as_in_the_authors_code(masks):
    # The right sides were measured with the released generator on 60,000 masks; the tolerances are four
    # standard errors.
    counts = masks.sum((1, 2))
    error = 4 * np.sqrt(1 / len(masks) + 1 / 60_000)
    assert counts.mean() == pytest.approx(74.469, abs=error * 0.987)
    assert counts.std() == pytest.approx(
        0.987, abs=error * 1.5
    )  # the distribution has a long tail: its variance varies more than a normal one's
    for count, share in {75: 0.663, 74: 0.235, 73: 0.048, 72: 0.036}.items():
        seen = (counts == count).mean()
        assert seen == pytest.approx(share, abs=error * np.sqrt(share * (1 - share))), (
            f"P({count}) = {seen:.4f}"
        )
    assert counts.max() == 75
    assert counts.min() >= 60


def test_hidden_patches_form_blocks_in_the_centre(masks):
    neighbours = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert neighbours == pytest.approx(0.862, abs=0.002), "independent patches would give 0.38"
    by_position = masks.mean(0)
    assert by_position.mean() == pytest.approx(0.3799, abs=0.0002)
    assert by_position.min() == pytest.approx(0.042, abs=0.006)
    assert by_position.max() == pytest.approx(0.717, abs=0.012)
    # Nothing distinguishes up from down or rows from columns.
    for other in (by_position[::-1], by_position[:, ::-1], by_position.T):
        assert np.abs(by_position - other).max() < 5 * np.sqrt(2 * 0.25 / len(masks))


def test_same_generator_gives_the_same_mask():
    config = MaskConfig()
    first, again, other = (
        draw_mask(np.random.default_rng([1, 2, 3, 4, row]), config, 14) for row in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_random_mask_hides_exactly_the_budget_anywhere():
    rng = np.random.default_rng(0)
    masks = np.stack([draw_mask(rng, MaskConfig(kind="random"), 14) for _ in range(4000)])
    assert (masks.sum((1, 2)) == 75).all()
    assert np.abs(masks.mean(0) - 75 / 196).max() < 4.5 * np.sqrt(0.236 / 4000)
    assert random_mask(rng, grid=3, budget=9).all()


@pytest.mark.parametrize("grid", [4, 5, 6, 8, 10, 14, 16])
def test_accepted_configs_hardly_ever_give_an_empty_mask(grid):
    rng = np.random.default_rng(0)
    for ratio in (0.05, 0.1, 0.2, 75 / 196, 0.6, 0.9):
        config = MaskConfig(ratio=ratio)
        try:
            check_mask(config, grid)
        except UserError:
            continue
        masks = [draw_mask(rng, config, grid) for _ in range(400)]
        empty = np.mean([not mask.any() for mask in masks])
        # A batch with an empty mask or two trains on: its loss is a mean over all hidden patches of the
        # batch.
        assert empty <= 0.01, f"grid {grid}, ratio {ratio:.2f}: {empty:.1%} empty"
        assert max(mask.sum() for mask in masks) <= config.budget(grid)


def test_a_budget_below_the_smallest_rectangle_is_refused():
    check_mask(MaskConfig(), 14)
    check_mask(MaskConfig(), 6)
    check_mask(MaskConfig(ratio=0.05, kind="random"), 14)
    with pytest.raises(UserError, match=re.escape("mask.ratio=0.05 hides at most 10 of 196 patches")):
        check_mask(MaskConfig(ratio=0.05), 14)


def test_an_unknown_kind_is_refused_with_the_nearest_one():
    with pytest.raises(UserError) as refused:
        check_mask(MaskConfig(kind="blokwise"), 14, at="evaluation.mask.")
    assert refused.value.cause.startswith("evaluation.mask.kind=blokwise is none of blockwise, random")
    assert refused.value.remedy.startswith("perhaps you meant blockwise; ")


@pytest.fixture
def registry(monkeypatch):
    """Forget what a test has registered."""
    monkeypatch.setattr(MASKS, "_choices", dict(MASKS._choices))


@pytest.mark.usefixtures("registry")
def test_masks_of_a_kind_from_outside_are_looked_at_before_they_are_used():
    for name, draw, said in (
        ("all-hidden", lambda rng, config, grid: np.ones((grid, grid), np.bool_), "hides 196 patches"),
        ("flat", lambda rng, config, grid: np.zeros(grid**2, np.bool_), r"masks of bool \[196\]"),
        ("counts", lambda rng, config, grid: np.zeros((grid, grid), int), "masks of int64"),
    ):
        register_mask(name, draw)
        with pytest.raises(UserError, match=said):
            check_mask(MaskConfig(kind=name), 14)


def test_built_in_kinds_are_not_replaced():
    with pytest.raises(ValueError, match="is built in"):
        register_mask("random", lambda rng, config, grid: np.zeros((grid, grid), np.bool_))
