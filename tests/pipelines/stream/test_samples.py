"""The config of samples carries everything that the process needs which makes them."""

import dataclasses
import io

import numpy as np
from PIL import Image
from ray import cloudpickle

from beit.config import MaskConfig, ViewConfig
from beit.pretraining.masking import MASKS, register_mask
from pipelines.stream.samples import SampleConfig


def test_masks_are_drawn_where_the_name_of_their_kind_is_not_known(monkeypatch):
    monkeypatch.setattr(MASKS, "_choices", dict(MASKS._choices))
    register_mask("corner", lambda rng, config, grid: np.arange(grid**2).reshape(grid, grid) < 2)
    samples = SampleConfig(
        seed=0, view=ViewConfig(), patch_px=32, mask=MaskConfig(kind="corner", ratio=0.2), grid=4
    )
    monkeypatch.setattr(MASKS, "_choices", {})
    sent = dataclasses.replace(cloudpickle.loads(cloudpickle.dumps(samples)), cache=None)
    white = np.full((64, 64, 3), 255, np.uint8)
    keys = {name: np.zeros(1, int) for name in ("epoch", "unit", "row")}
    made = sent.make({"image": np.array([_png(white)], dtype=object), **keys})
    assert made["mask"].tolist() == [[True, True, *[False] * 14]]


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
