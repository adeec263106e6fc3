"""A part of the images: how many, which, and what is held for it."""

import itertools
import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from pipelines.sources import Manifest, Unit
from pipelines.sources import part as parts
from pipelines.sources.part import take_part

ROWS = np.array([7, 1, 40, 3, 1, 48], np.int32)


class Numbered(Unit):
    """A unit whose images are their own numbers."""

    def __init__(self, index):
        self.index = index

    def read(self, rows, columns=("image",)):
        return dict.fromkeys(columns, 1000 * self.index + rows)

    def describe(self, row):
        return f"unit {self.index}, row {row}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers(Manifest):
    kind = "numbers"

    def unit(self, index):
        return Numbered(index)


def manifest(rows=ROWS):
    return Numbers(rows=rows, digest="d", columns=("image",), class_names=None)


def images_in(part):
    found = []
    for index, count in enumerate(part.rows.tolist()):
        unit = pickle.loads(pickle.dumps(part.unit(index)))
        images = unit.read(np.arange(count)[::-1])["image"][::-1].tolist()
        assert unit.describe(0) == f"unit {images[0] // 1000}, row {images[0] % 1000}"
        found += images
    return found


@pytest.mark.parametrize("at_once", [1 << 22, 13], ids=["at once", "some at a time"])
def test_a_part_is_the_share_that_was_asked_for_and_lies_within_a_larger_one(at_once, monkeypatch):
    monkeypatch.setattr(parts, "AT_ONCE", at_once)
    whole = manifest()
    tenth, half, most = (take_part(whole, fraction, 3) for fraction in (0.1, 0.5, 0.999))
    assert (tenth.total, half.total, most.total) == (10, 50, 100)
    assert (half.rows > 0).all()
    found = [images_in(one) for one in (tenth, half, most, whole)]
    assert all(len(set(images)) == len(images) for images in found)
    assert all(set(smaller) <= set(larger) for smaller, larger in itertools.pairwise(found))
    assert take_part(whole, 1.0, 3) is whole
    assert take_part(whole, 1e-9, 3).total == 1


def test_the_same_seed_takes_the_same_images_and_another_one_others():
    first, again, other = (take_part(manifest(), 0.5, seed) for seed in (3, 3, 4))
    assert images_in(first) == images_in(again) != images_in(other)
    assert len({manifest().digest, first.digest, other.digest, take_part(manifest(), 0.1, 3).digest}) == 4
    assert first.digest == again.digest


def test_every_image_is_as_likely_to_be_taken():
    taken = np.bincount(
        [image for seed in range(400) for image in images_in(take_part(manifest(), 0.25, seed))]
    )
    counts = taken[taken > 0]
    assert len(counts) == 100
    # Binomial, of 400 draws at 1/4: deviation 8.7.
    assert counts.mean() == 100
    assert 7 < counts.std() < 10.5


def test_a_part_of_many_images_costs_bytes_for_its_units_only():
    part = take_part(manifest(np.full(50, 40_000, np.int32)), 0.5, 0)
    assert part.total == 1_000_000
    assert len(pickle.dumps(part)) < 5000
