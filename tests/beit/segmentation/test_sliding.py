"""Windows and scales: a model that looks at single pixels cannot tell that there are any."""

import pytest
import torch

from beit.segmentation.sliding import segment, slide, window_starts


def local(pixels):
    """Logits of four classes that depend on the pixel alone."""
    return torch.cat([pixels, pixels.prod(1, keepdim=True)], 1)


def noise(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 32), (47, 33), (64, 101), (20, 50), (9, 11)])
def test_a_local_model_gives_the_same_with_and_without_windows(size):
    seen = []

    def model(window):
        seen.append(window.shape[2:])
        return local(window)

    pixels = noise(*size)
    torch.testing.assert_close(slide(model, pixels, crop=32, stride=21), local(pixels))
    assert set(seen) == {(32, 32)}


@pytest.mark.parametrize(("crop", "stride"), [(32, 21), (32, 32), (5, 1)])
def test_windows_reach_every_pixel_and_none_beyond_the_image(crop, stride):
    for length in range(crop, 110):
        starts = window_starts(length, crop, stride)
        assert {start + place for start in starts for place in range(crop)} == set(range(length))
        assert len(starts) == -(-(length - crop) // stride) + 1
    with pytest.raises(ValueError, match="leave pixels out"):
        slide(local, noise(40, 40), crop=16, stride=17)


def test_logits_are_averaged_where_windows_overlap():
    def model(windows):
        return torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)

    row = slide(model, noise(8, 12)[:1], crop=8, stride=4)[0, 0, 0]
    assert row.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4


def test_scales_and_flips_average_probabilities_at_the_size_asked_for():
    pixels = noise(40, 56)
    way = {"scaled": (40, 56), "crop": 32, "stride": 21}
    single = segment(local, pixels, size=(40, 56), **way)
    torch.testing.assert_close(single, local(pixels).softmax(1))
    torch.testing.assert_close(segment(local, pixels, size=(40, 56), flip=True, **way), single)
    several = segment(local, pixels, size=(61, 83), ratios=(0.5, 1, 1.75), flip=True, **way)
    assert several.shape == (2, 4, 61, 83)
    torch.testing.assert_close(several.sum(1), torch.ones(2, 61, 83))
    parts = [
        segment(local, pixels, size=(61, 83), ratios=(ratio,), flip=True, **way) for ratio in (0.5, 1, 1.75)
    ]
    torch.testing.assert_close(several, torch.stack(parts).mean(0))
    # Half of 40 is below the crop: the image is scaled by 32/40 instead.
    torch.testing.assert_close(parts[0], segment(local, pixels, size=(61, 83), ratios=(0.8,), **way))


def test_every_scale_is_made_of_the_image_as_it_came():
    large = noise(80, 112)
    found = segment(local, large, size=(80, 112), scaled=(40, 56), crop=32, stride=21, ratios=(2.0,))
    torch.testing.assert_close(
        found, local(large).softmax(1)
    )  # Through a scale of 40 x 56 its noise would be lost.


@pytest.mark.parametrize("images", [1, 3])
def test_windows_go_through_the_model_together_as_far_as_there_is_room(images, monkeypatch):
    seen = []

    def model(windows):
        seen.append(len(windows))
        return local(windows)

    pixels = noise(64, 101)[:1].expand(images, -1, -1, -1)
    monkeypatch.setattr("beit.segmentation.sliding.PIXELS_AT_ONCE", 7 * 32 * 32)
    torch.testing.assert_close(slide(model, pixels, crop=32, stride=21), local(pixels))
    assert sum(seen) == images * 3 * 5
    assert seen[0] == {1: 7, 3: 6}[images]


def test_a_thin_strip_is_padded_rather_than_made_as_high_as_a_window():
    windows = []

    def model(window):
        windows.append(window)
        return local(window)

    pixels = noise(3, 512)
    torch.testing.assert_close(
        segment(model, pixels, size=(3, 512), scaled=(3, 512), crop=32, stride=32), local(pixels).softmax(1)
    )
    assert sum(map(len, windows)) == 2 * 16
    windows.clear()
    assert segment(model, noise(4, 40), size=(4, 40), scaled=(4, 40), crop=32, stride=32).shape == (
        2,
        4,
        4,
        40,
    )
    assert sum(map(len, windows)) == 2 * 8, (
        "scaled up 6.4 times, 26 x 256: the longer side is as long as it may become"
    )
