"""Configurations of segmentation that are refused."""

import pytest

from beit.checks import check
from beit.errors import UserError
from beit.plain import from_dict, to_dict
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig, SlidingConfig


def test_configs_come_back_from_json_and_impossible_ones_are_refused():
    for config in (
        AnnotationConfig(classes=11, ignore_index=None),
        SegmentViewConfig(scale=(0.5, 1.5)),
        SlidingConfig(ratios=(0.5, 1.0)),
    ):
        assert from_dict(type(config), to_dict(config)) == config
    for wrong, cause in (
        ({"short_side": 512, "long_side": 256}, "view.long_side=256 is below view.short_side=512"),
        ({"scale": (2.0, 0.5)}, r"view.scale=\(2, 0.5\) does not grow"),
        ({"most_of_one_class": 1.5}, "view.most_of_one_class=1.5 is not between 0 and 1"),
    ):
        with pytest.raises(UserError, match=cause):
            check(SegmentViewConfig(**wrong), "view.")
    for wrong, cause in (
        ({"classes": 0}, "annotation.classes=0 is not positive"),
        ({"classes": 40_000}, "does not fit 16 bits"),
        ({"classes": 847}, "has a class of id 255"),
    ):
        with pytest.raises(UserError, match=cause):
            check(AnnotationConfig(**wrong), "annotation.")


def test_windows_overlap_by_a_third_unless_they_are_told_otherwise():
    assert [SlidingConfig().stride_for(crop) for crop in (512, 640)] == [341, 426]  # the authors'
    several = [
        SlidingConfig(),
        SlidingConfig(flip=True),
        SlidingConfig(ratios=(0.5, 1)),
        SlidingConfig(stride=64),
    ]
    assert len({config.name for config in several}) == 4
