"""A source in a file of one's own is opened by `data.train`, and read in the stream's tasks."""

import re
from pathlib import Path

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import pretrain
from pipelines.sources import open_source
from pipelines.stream.ledger import Ledger
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training.recipe import data_line


def trained_on(result):
    """The ledger of a run of three steps of 16 images."""
    assert result.step == 3
    return Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes())


def test_every_sample_of_ones_own_files_is_trained_on_once(pretrained):
    assert "data: 48 images in 3 units (arrays)" in pretrained.lines
    ledger = trained_on(pretrained.result)
    assert (ledger.rows.tolist(), ledger.settled, ledger.complete) == ([16, 16, 16], 48, 1)
    assert not ledger.quarantine


def test_every_sample_of_ones_own_scheme_is_trained_on_once(extension, turned):
    extension("arrays")
    assert data_line(open_source("noise://3").manifest) == "data: 48 images in 3 units (noise)"
    ledger = trained_on(turned.result)
    assert (ledger.rows.tolist(), ledger.settled, ledger.complete) == ([16, 16, 16], 48, 1)
    assert not ledger.quarantine


def test_views_of_ones_own_files_are_of_their_images(extension, arrays):
    extension("arrays")
    folder, colours = arrays
    manifest = open_source(folder).manifest
    view = override(quickstart(), {"view.jitter": 0.0}).view
    samples = draw_unseen(manifest, SampleConfig(seed=0, view=view, patch_px=64), 48)
    for unit, row, pixels in zip(samples["unit"], samples["row"], samples["patch_view"], strict=True):
        assert (pixels == colours[16 * unit + row]).all()


@pytest.mark.parametrize("path", ["noise://many", "nowhere://3"])
def test_a_wrong_path_is_refused_in_a_line(extension, tmp_path, path):
    extension("arrays")
    with pytest.raises(UserError, match=re.escape(path.partition("://")[0])):
        pretrain(override(quickstart(), {"data.train": path, "output.root": str(tmp_path)}))
    assert not list(tmp_path.iterdir())
