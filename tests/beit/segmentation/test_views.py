"""Joint views: labels stay on their pixels, nothing outside of the image counts, colours change as they
should.
"""

import colorsys
import dataclasses
import io

import numpy as np
from PIL import Image

from beit.images.decode import Status
from beit.segmentation.annotations import IGNORED, AnnotationStatus
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig
from beit.segmentation.views import DRAWS, make_segment_view, recoloured, scaled_size, transform, whole_view

MEAN = (0.5, 0.25, 0.75)
PLAIN = SegmentViewConfig(short_side=64, long_side=256, distort=0.0, mean=MEAN)


def painted(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of flat areas whose colour tells their class: 50 grey levels per class."""
    rows, columns = np.arange(height)[:, None] * 4 // height, np.arange(width)[None] * 3 // width
    labels = ((rows + columns) % 5).astype(np.int16)
    return np.repeat((labels * 50).astype(np.uint8)[..., None], 3, 2), labels


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(DRAWS)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_labels_stay_on_their_pixels_whatever_is_drawn():
    for seed in range(30):
        image, labels = painted(90 + seed, 140 - seed)
        view, seen = transform(image, labels, drawn(seed), view=PLAIN, side=64)
        inside = seen != IGNORED
        # Only pixels at the borders of areas are blends of two.
        agree = np.abs(view[inside][:, 0].astype(int) - 50 * seen[inside]) <= 1
        assert agree.mean() > 0.75
        assert (view[~inside] == np.rint(255 * np.array(MEAN))).all()


def test_a_crop_is_that_of_the_whole_image_resized():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    labels = (np.arange(50 * 70).reshape(50, 70) % 5).astype(np.int16)
    config = dataclasses.replace(PLAIN, scale=(2, 2), flip=0.0)  # 128 x 179
    whole = np.asarray(Image.fromarray(image).resize((179, 128), Image.Resampling.BILINEAR)).astype(int)
    view, _ = transform(image, labels, drawn(3), view=config, side=64)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (64, 64), (0, 1))
    furthest = np.abs(windows[..., ::16, ::16] - view[::16, ::16].transpose(2, 0, 1)).max((2, 3, 4))
    top, left = np.unravel_index(furthest.argmin(), furthest.shape)
    assert np.abs(whole[top : top + 64, left : left + 64] - view).max() <= 1


def test_a_crop_of_almost_one_class_is_drawn_again():
    labels = np.zeros((64, 256), np.int16)
    labels[:, 192:] = np.arange(64)[:, None] // 16
    image = np.zeros((64, 256, 3), np.uint8)
    config = dataclasses.replace(PLAIN, scale=(1, 1))

    def share(most: float) -> float:
        views = [
            transform(
                image, labels, drawn(seed), view=dataclasses.replace(config, most_of_one_class=most), side=64
            )
            for seed in range(200)
        ]
        return float(np.mean([np.bincount(seen.ravel()).max() < 0.75 * seen.size for _, seen in views]))

    # 43 of the 193 places leave other classes a quarter.
    chance = 43 / 193
    assert abs(share(0.75) - (1 - (1 - chance) ** 10)) < 0.06
    assert abs(share(1.0) - chance) < 0.09


def test_colours_turn_and_saturate_as_in_hsv():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (200, 3)).astype(np.float32)
    values[:5] = 77  # grey has no hue
    for saturation, degrees in ((0.5, 0), (1.5, 0), (1, 30), (1.3, -36)):
        expected = []
        for pixel in values / 255:
            hue, chroma, value = colorsys.rgb_to_hsv(*pixel.tolist())
            expected.append(
                colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1, chroma * saturation), value)
            )
        np.testing.assert_allclose(
            recoloured(values, saturation=saturation, degrees=degrees) / 255, expected, atol=1e-5
        )


def test_colours_change_within_their_limits_and_labels_do_not():
    image, labels = np.full((64, 64, 3), (100, 120, 140), np.uint8), painted(64, 64)[1]
    config = SegmentViewConfig(short_side=64, long_side=256, scale=(1, 1), flip=0.0, hue=0, saturation=(1, 1))
    seen = np.array(
        [transform(image, labels, drawn(seed), view=config, side=64)[0][0, 0] for seed in range(300)]
    )
    unchanged = (seen == (100, 120, 140)).all(1).mean()
    assert 0.15 < unchanged < 0.35, "brightness and contrast both stay in a quarter of the cases"
    assert seen.min() >= (100 - 32) * 0.5 - 1
    assert seen[:, 0].max() <= (100 + 32) * 1.5 + 1
    distorted, same = transform(image, labels, drawn(0), view=config, side=64)
    _, plain = transform(image, labels, drawn(0), view=dataclasses.replace(config, distort=0), side=64)
    np.testing.assert_array_equal(same, plain)
    assert distorted.dtype == np.uint8


def test_as_much_is_drawn_for_any_files_and_bad_ones_weigh_nothing():
    image, labels = painted(40, 60)
    good, ids = png(image), AnnotationConfig(classes=5)
    left = []
    for encoded, annotation, status in (
        (good, png(labels.astype(np.uint8)), Status.DECODED),
        (good, png(labels[:-1].astype(np.uint8)), AnnotationStatus.SIZE_DIFFERS),
        (good, png(labels.astype(np.uint8) + 1), AnnotationStatus.OUT_OF_RANGE),
        (b"words", png(labels.astype(np.uint8)), Status.NOT_AN_IMAGE),
        (png(np.zeros((300, 20, 3), np.uint8)), png(np.zeros((300, 20), np.uint8)), Status.DECODED),
    ):
        rng = np.random.default_rng(5)
        made = make_segment_view(encoded, annotation, rng, view=PLAIN, ids=ids, side=32)
        assert made.status is status
        assert (made.patch_view.shape, made.labels.shape) == ((32, 32, 3), (32, 32))
        assert (made.labels != IGNORED).any() == (status is Status.DECODED)
        left.append(rng.random())
    assert len(set(left)) == 1


def test_the_view_for_testing_has_the_short_side_asked_for_and_is_never_enlarged():
    assert whole_view(np.zeros((360, 480, 3), np.uint8), PLAIN).shape == (64, 85, 3)
    assert whole_view(np.zeros((360, 480, 3), np.uint8), PLAIN, largest=1.75).shape == (112, 149, 3)
    assert whole_view(np.zeros((10, 1000, 3), np.uint8), PLAIN).shape == (3, 256, 3)
    small = np.arange(30 * 20 * 3, dtype=np.uint8).reshape(30, 20, 3)
    assert (whole_view(small, PLAIN) == small).all()
    assert scaled_size(30, 20, PLAIN, 1.0) == (96, 64)
