"""RandAugment: what is drawn, and what each operation does."""

import numpy as np
import pytest
from PIL import Image

from beit.classification.config import AugmentConfig
from beit.classification.randaugment import OPERATIONS, draw_operations, randaugment

GREY = (128, 128, 128)


def picture(side=24):
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)


def test_operations_are_equally_likely_applied_half_of_the_time_and_vary_about_nine():
    drawn = [draw_operations(np.random.default_rng(seed), AugmentConfig()) for seed in range(6000)]
    names, magnitudes, signs = zip(
        *(operation for operations in drawn for operation in operations), strict=True
    )
    assert len(names) / 12000 == pytest.approx(0.5, abs=0.015)
    shares = np.array([names.count(name) for name in OPERATIONS]) / len(names)
    assert len(OPERATIONS) == 15
    np.testing.assert_allclose(shares, 1 / 15, atol=0.012)
    # Normal about 9 with deviation 0.5, of which all above 10 (2.3 %) is cut down to it.
    assert (np.mean(magnitudes), np.std(magnitudes)) == (
        pytest.approx(8.995, abs=0.03),
        pytest.approx(0.49, abs=0.02),
    )
    assert max(magnitudes) == 10
    assert np.mean(signs) == pytest.approx(0, abs=0.03)


def test_without_strength_the_operations_that_grow_change_nothing_but_where_they_must():
    view = picture()
    unchanged = [
        name
        for name, operate in OPERATIONS.items()
        if (np.asarray(operate(Image.fromarray(view), 0.0, 1, GREY)) == view).all()
    ]
    # Three have no strength at all; posterizing begins at 4 bits.
    assert set(OPERATIONS) - set(unchanged) <= {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_can_be_done_at_every_magnitude_that_is_drawn(name):
    view = picture()
    for strength in (0.0, 0.25, 0.9, 1.0):
        for sign in (1, -1):
            done = np.asarray(OPERATIONS[name](Image.fromarray(view), strength, sign, GREY))
            assert (done.shape, done.dtype) == (view.shape, np.uint8)


def test_operations_do_what_their_names_say():
    view = picture().astype(int)
    image = Image.fromarray(view.astype(np.uint8))
    done = {
        name: np.asarray(operate(image, 0.5, 1, GREY)).astype(int) for name, operate in OPERATIONS.items()
    }
    np.testing.assert_array_equal(done["Invert"], 255 - view)
    np.testing.assert_array_equal(done["PosterizeIncreasing"], view & 0b11000000)
    assert not np.asarray(OPERATIONS["PosterizeIncreasing"](image, 1.0, 1, GREY)).any(), "no bit is left"
    np.testing.assert_array_equal(done["SolarizeIncreasing"], np.where(view < 128, view, 255 - view))
    np.testing.assert_array_equal(done["SolarizeAdd"], np.where(view < 128, np.minimum(view + 55, 255), view))
    np.testing.assert_allclose(done["BrightnessIncreasing"], np.minimum(1.45 * view, 255), atol=1)
    # 0.45 * 0.5 of 24 px: 5.4 px to the left, and grey comes in from the right.
    assert (done["TranslateXRel"][:, -5:] == 128).all()
    assert abs(done["TranslateXRel"][:, 3:15] - (0.6 * view[:, 8:20] + 0.4 * view[:, 9:21])).mean() < 30
    assert (done["TranslateYRel"][-5:] == 128).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("strength", [0.4, 0.9])
def test_enhancements_move_an_image_away_from_what_lacks_the_quality_or_towards_it(strength, sign):
    view = picture().astype(float)
    factor = 1 + sign * 0.9 * strength
    grey = view @ [0.299, 0.587, 0.114]
    smooth = view.copy()
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth[1:-1, 1:-1] = sum(kernel[y, x] * view[y : y + 22, x : x + 22] for y in range(3) for x in range(3))
    without = {
        "ColorIncreasing": grey[..., None],
        "ContrastIncreasing": np.round(grey.mean()),
        "SharpnessIncreasing": smooth,
    }
    for name, lacking in without.items():
        expected = np.clip(lacking + factor * (view - lacking), 0, 255)
        np.testing.assert_allclose(
            np.asarray(OPERATIONS[name](Image.fromarray(picture()), strength, sign, GREY)),
            expected,
            atol=2.5,
            err_msg=name,
        )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("strength", [0.4, 0.9])
def test_an_image_is_turned_and_sheared_as_a_plane_is(strength, sign):
    # Centres of pixels from the middle; a slope stays one under cubic interpolation, so it tells where each
    # pixel comes from.
    y, x = np.mgrid[:48, :48] - 23.5

    def slope(x, y):
        return np.stack([128 + 2 * x, 128 + 2 * y, 128 + x - y], -1)

    angle, shear = np.deg2rad(sign * 30 * strength), sign * 0.3 * strength
    # A turn is counter-clockwise for positive degrees; what is sheared stays where it is in the first row or
    # column.
    source = {
        "Rotate": (np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y),
        "ShearX": (x + shear * (y + 24), y),
        "ShearY": (x, y + shear * (x + 24)),
    }
    image = Image.fromarray(np.round(slope(x, y)).astype(np.uint8))
    for name, (from_x, from_y) in source.items():
        done = np.asarray(OPERATIONS[name](image, strength, sign, GREY)).astype(float)
        inside = (abs(from_x) < 21.5) & (abs(from_y) < 21.5)
        assert inside.sum() > 800
        np.testing.assert_allclose(done[inside], slope(from_x, from_y)[inside], atol=1.6, err_msg=name)


def test_the_same_generator_gives_the_same_view_of_the_same_form():
    view = picture()
    views = [
        randaugment(view, np.random.default_rng(seed), AugmentConfig(probability=1.0), GREY)
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()
    assert all(one.shape == view.shape and one.dtype == np.uint8 for one in views)
    assert randaugment(view, np.random.default_rng(0), AugmentConfig(operations=0), GREY) is view
