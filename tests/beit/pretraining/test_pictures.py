import numpy as np
import pytest
import torch

from beit.config import ModelConfig, ViewConfig
from beit.images.pictures import contact_sheet
from beit.images.pixels import normalise
from beit.pretraining.model import Beit
from beit.pretraining.pictures import HIDDEN, Reconstructions, cover, judge, reconstruct, reconstruction_sheet
from beit.pretraining.targets import MeanColour, Pixels, VisualTokens

GREEN, RED = np.array([38, 148, 92]), np.array([205, 62, 62])


class EightColours:
    """A tokenizer whose tokens are visible: token t paints its patch in grey 30 t."""

    vocab_size, px_per_token, digest, precision, has_decoder = 8, 4, "", "float32", True

    def encode(self, images):
        return (
            (images.float().mean(1).unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).mean((2, 4)) / 30)
            .round()
            .clamp(0, 7)
            .long()
            .flatten(1)
        )

    def decode(self, tokens):
        grid = round(tokens.shape[1] ** 0.5)
        grey = (tokens * 30).reshape(-1, 1, grid, grid).to(torch.uint8)
        return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def test_contact_sheet_shows_every_image_undistorted_in_its_place():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [np.full((20, 40, 3), colour, dtype=np.uint8) for colour in colours]
    sheet = np.asarray(
        contact_sheet(images, columns=2, side=40, captions=["one", "two", "a caption that is far too long"])
    )
    for number, colour in enumerate(colours):
        found = (sheet == colour).all(2)
        rows, columns = np.nonzero(found)
        assert found.sum() == 20 * 40
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (19, 39)
        assert (columns.mean() > sheet.shape[1] / 2) == (number == 1)
        assert (rows.mean() > sheet.shape[0] / 2) == (number == 2)
    assert (sheet[:, -6:] == 255).all(), "the long caption is cut at its image's edge"
    assert sheet.shape[0] < 2 * 40 + 30, "no row is higher than its images and a caption"


def test_contact_sheet_refuses_captions_that_do_not_match():
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        contact_sheet([np.zeros((4, 4, 3), dtype=np.uint8)] * 2, columns=2, side=8, captions=["one"])


def test_hidden_patches_are_covered_and_judged_where_they_are():
    image = np.full((12, 12, 3), 200, dtype=np.uint8)
    mask, right = np.zeros((3, 3), dtype=bool), np.zeros((3, 3), dtype=bool)
    mask[0, 2] = mask[2, 0] = right[0, 2] = True
    covered, judged = cover(image, mask), judge(image, mask, right)
    assert (covered[:4, 8:] == HIDDEN).all()
    assert (covered == HIDDEN).all(2).sum() == 2 * 16
    nearer_green = np.abs(judged - GREEN).sum(2) < np.abs(judged - RED).sum(2)
    coloured = np.ptp(judged, axis=2) > 0
    assert (coloured == (covered == HIDDEN).all(2)).all()
    assert nearer_green[:4, 8:].all()
    assert not nearer_green[8:, :4].any()


def test_reconstruction_fills_only_hidden_patches_with_predictions():
    torch.manual_seed(0)
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=16, depth=2, heads=2), vocab_size=8).train()
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    masks = torch.rand(3, 16) < 0.4
    tokenizer = EightColours()
    tokens = tokenizer.encode(images[:, ::2, ::2].permute(0, 3, 1, 2))
    batch = {"patch_view": images, "tokens": tokens, "mask": masks}
    shown = reconstruct(model, VisualTokens(8, tokenizer), batch, ViewConfig())
    assert model.training, "left as it was found"

    hidden = masks.numpy()
    with torch.inference_mode():
        logits = model.eval()(normalise(images, ViewConfig()), masks)
    assert (shown.predicted[hidden] == logits.argmax(1).numpy()).all(), (
        "hidden patches are predicted as in training"
    )
    assert shown.accuracy == pytest.approx((shown.predicted == tokens.numpy())[hidden].mean())
    grey = shown.painted_filled[:, ::4, ::4, 0].reshape(3, 16)
    assert (grey[hidden] == 30 * shown.predicted[hidden]).all()
    assert (grey[~hidden] == 30 * tokens.numpy()[~hidden]).all()
    assert (shown.painted_true[:, ::4, ::4, 0].reshape(3, 16) == 30 * tokens.numpy()).all()


@pytest.mark.parametrize("asked", ["hidden", "all"])
@pytest.mark.parametrize("target", [Pixels(8, ViewConfig()), MeanColour(8)], ids=["pixels", "colour"])
def test_pixels_and_colours_are_painted_into_the_hidden_patches_and_judged_where_they_are_asked_for(
    target, asked
):
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=16, depth=2, heads=2), target.outputs)
    images = torch.randint(
        0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    masks = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    shown = reconstruct(model, target, {"patch_view": images, "mask": masks}, ViewConfig(), asked=asked)
    hidden = masks.reshape(3, 4, 4).numpy().repeat(8, 1).repeat(8, 2)
    assert (shown.painted_filled[~hidden] == shown.painted_true[~hidden]).all()
    assert (shown.painted_filled[hidden] == shown.painted_predicted[hidden]).all()
    assert (shown.painted_predicted[hidden] != shown.painted_true[hidden]).any()
    assert np.array_equal(shown.painted_true, images.numpy()) == (target.kind == "pixels")
    sheet = np.asarray(reconstruction_sheet(shown, side=64))
    assert sheet.shape[1] == 6 + (4 if target.kind == "pixels" else 6) * 70
    if target.kind == "colour":
        share = shown.right.mean() if asked == "all" else shown.right[shown.masks].mean()
        assert shown.accuracy == pytest.approx(share)


@pytest.mark.parametrize(("decoded", "columns"), [(True, 6), (False, 3)])
def test_sheet_has_a_row_an_image_and_leaves_out_what_cannot_be_decoded(decoded, columns):
    picture = np.zeros((2, 16, 16, 3), dtype=np.uint8) if decoded else None
    shown = Reconstructions(
        target=VisualTokens,
        images=np.zeros((2, 32, 32, 3), dtype=np.uint8),
        masks=np.ones((2, 4, 4), dtype=bool),
        asked=np.ones((2, 4, 4), dtype=bool),
        true=np.zeros((2, 16), dtype=np.int64),
        predicted=np.zeros((2, 16), dtype=np.int64),
        painted_true=picture,
        painted_filled=picture,
        painted_predicted=picture,
    )
    sheet = np.asarray(reconstruction_sheet(shown, side=64))
    black = (sheet == 0).all(2).sum()
    assert black == (columns - 2) * 2 * 64 * 64, "one column is covered, one is coloured"
    assert sheet.shape[1] == 6 + columns * 70
