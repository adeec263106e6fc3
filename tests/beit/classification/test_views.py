"""Erased rectangles, and the view on which a classifier is evaluated."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from beit.classification import views as classification_views
from beit.classification.config import AugmentConfig
from beit.classification.views import draw_erased, erase, make_centre_view
from beit.config import ViewConfig
from beit.images.decode import Status


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_quarter_of_the_views_lose_a_rectangle_of_two_percent_to_a_third():
    boxes = np.array([draw_erased(np.random.default_rng(seed), AugmentConfig(), 64) for seed in range(4000)])
    top, left, height, width = boxes[boxes[:, 2] > 0].T
    assert len(top) / len(boxes) == pytest.approx(0.25, abs=0.02)
    share = height * width / 64**2
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() < 0.35
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    assert np.log(height / width).mean() == pytest.approx(0, abs=0.08)


def test_noise_stands_in_the_rectangle_and_nowhere_else():
    pixels = torch.full((2, 3, 32, 32), 7.0)
    erased = torch.tensor([[4, 10, 20, 16], [0, 0, 0, 0]], dtype=torch.int16)
    found = erase(pixels, erased, torch.Generator().manual_seed(0))
    inside = found[0, :, 4:24, 10:26]
    assert (found == 7).sum() == pixels.numel() - inside.numel()
    assert (inside.mean().item(), inside.std().item()) == (
        pytest.approx(0, abs=0.1),
        pytest.approx(1, abs=0.1),
    )


@pytest.mark.parametrize(("height", "width"), [(50, 80), (81, 37), (64, 64)])
def test_the_centre_view_is_pillows_bicubic_resize_and_a_centre_crop(height, width):
    smooth = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    view, status = make_centre_view(encoded(np.asarray(image)), view=ViewConfig(), image_size=32)
    short = 36  # int(32 / 0.875)
    scaled = image.resize(
        (int(short * width / height), short) if height < width else (short, int(short * height / width)), 3
    )
    left, top = round((scaled.width - 32) / 2), round((scaled.height - 32) / 2)
    expected = np.asarray(scaled.crop((left, top, left + 32, top + 32))).astype(int)
    assert status == Status.DECODED
    assert abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_thin_strip_the_middle_is_seen_and_no_more_is_resized(turned, monkeypatch):
    resized = []
    monkeypatch.setattr(
        classification_views,
        "interpolate",
        lambda pixels, size, **options: resized.append(size) or interpolate(pixels, size),
    )
    strip = np.zeros((3, 1000, 3), np.uint8)
    strip[:, 490:510] = 200
    view, status = make_centre_view(
        encoded(strip.transpose(1, 0, 2) if turned else strip), view=ViewConfig(), image_size=32
    )
    assert (status, view.shape) == (Status.DECODED, (32, 32, 3))
    assert resized == [(36 * 8, 36) if turned else (36, 36 * 8)]
    assert (view == 200).all()


def test_from_384_px_on_the_whole_short_side_is_seen():
    array = np.random.default_rng(0).integers(0, 256, (384, 400, 3), np.uint8)
    view, _ = make_centre_view(encoded(array), view=ViewConfig(), image_size=384)
    np.testing.assert_array_equal(view, array[:, 8:392])


def test_an_undecodable_image_gives_zeros_and_the_reason():
    view, status = make_centre_view(b"", view=ViewConfig(), image_size=16)
    assert (view.shape, int(view.sum()), status) == ((16, 16, 3), 0, Status.EMPTY)
