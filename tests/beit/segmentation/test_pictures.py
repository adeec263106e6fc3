"""Sheets of segmentations: every class keeps its colour, and the legend names what occurs."""

import numpy as np

from beit.segmentation.annotations import IGNORED
from beit.segmentation.pictures import IGNORED_COLOUR, paint, palette, segmentation_sheet


def test_classes_have_colours_of_their_own_whatever_their_number():
    colours = palette(150).astype(int)
    assert (palette(11) == colours[:11]).all()
    apart = np.abs(colours[:, None] - colours[None]).sum(-1)[~np.eye(150, dtype=bool)]
    assert apart.min() > 0
    assert np.abs(colours - np.array(IGNORED_COLOUR)).sum(-1).min() > 0
    painted = paint(np.array([[0, IGNORED], [3, 10]]), 11)
    assert painted.tolist() == [
        [colours[0].tolist(), list(IGNORED_COLOUR)],
        [colours[3].tolist(), colours[10].tolist()],
    ]


def test_a_sheet_shows_truth_and_prediction_and_names_what_occurs():
    truth = np.zeros((40, 40), np.int16)
    truth[:, 20:] = 2
    image = np.full((40, 40, 3), 7, np.uint8)
    names = ["sky", "road", "car", "tree"]
    sheet = np.asarray(segmentation_sheet([image], [truth], [np.full((40, 40), 2)], names, side=80))
    colours = palette(4)

    def pixels_of(colour) -> int:
        return int((sheet == colour).all(-1).sum())

    legend = 14 * 14
    assert pixels_of(colours[0]) == 80 * 40 + legend
    assert pixels_of(colours[2]) == 80 * 40 + 80 * 80 + legend
    assert pixels_of(colours[1]) == pixels_of(colours[3]) == 0
    assert pixels_of(IGNORED_COLOUR) < legend / 10, "a few grey pixels at the edges of letters, but no square"
