"""A kind of masks in a file of one's own is chosen by its name, and drawn in the stream's reading tasks."""

import re

import numpy as np
import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import PretrainTask, pretrain
from pipelines.runs.metrics import read_metrics
from pipelines.stream.samples import draw_unseen

OPTIONS = {"mask.kind": "stripes", "mask.ratio": 0.3, "steps": 3, "data.scenes": 16, "optim.warmup_steps": 1}


def test_masks_of_ones_own_are_those_of_the_stream(extension, pretrained, tmp_path):
    extension("stripes")
    config = override(quickstart(), {**OPTIONS, "output.root": str(tmp_path)})
    samples = PretrainTask().prepare(config, preset="test", say=print)
    masks = draw_unseen(samples.source.manifest, samples.samples, 8)["mask"].reshape(8, 8, 8)
    assert np.array_equal(masks.all(1), masks.any(1)), "whole columns or none of it"
    assert (masks.all(1).sum(1) == 19 // 8).all(), "as many as 30 % of 64 patches have room for"
    assert any(
        line.startswith("mask: stripes, at most 19 of 64 patches hidden, 16.0 on average")
        for line in pretrained.lines
    )
    hidden = [row["train/hidden"] for row in read_metrics(pretrained.result.run)]
    assert hidden == [0.25] * 3, "16 of 64 patches of every image"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask.ratio": 0.1}, "mask.ratio=0.1 hides less than one column of 8 patches"),
        ({"mask.kind": "stripe"}, "perhaps you meant stripes"),
    ],
)
def test_a_mistake_about_them_is_refused_before_anything_starts(extension, tmp_path, wrong, message):
    extension("stripes")
    config = override(quickstart(), {**OPTIONS, **wrong, "output.root": str(tmp_path)})
    with pytest.raises(UserError, match=re.escape(message)):
        pretrain(config)
    assert not list(tmp_path.iterdir())
