"""A source in a file of one's own is opened by `data.train`, and read in the stream's tasks."""

import re
from pathlib import Path

import numpy as np
import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import pretrain
from pipelines.sources import open_source
from pipelines.stream.ledger import Ledger
from pipelines.stream.samples import SampleConfig, draw_unseen

OPTIONS = {
    "epochs": 1,
    "optim.global_batch_size": 16,
    "optim.warmup_steps": 1,
    "output.name": "mine",
    "output.mlflow": False,
    "output.log_seconds": 0.0,
}


def write_arrays(folder):
    """Three files of sixteen images of one colour each, and the colours."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 16, 3), np.uint8)
    for number, each in enumerate(colours):
        np.savez(folder / f"{number}.npz", images=np.broadcast_to(each[:, None, None], (16, 64, 64, 3)))
    return colours.reshape(-1, 3)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("path", ["noise://3", "FOLDER"])
def test_every_sample_of_ones_own_source_is_trained_on_once(extension, tmp_path, path):
    extension("arrays")
    (tmp_path / "data").mkdir()
    write_arrays(tmp_path / "data")
    train = str(tmp_path / "data") if path == "FOLDER" else path
    lines = []
    result = pretrain(
        override(quickstart(), {**OPTIONS, "data.train": train, "output.root": str(tmp_path)}),
        say=lines.append,
    )
    assert result.step == 3
    kind = "arrays" if path == "FOLDER" else "noise"
    assert f"data: 48 images in 3 units ({kind})" in lines
    ledger = Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes())
    assert ledger.settled == 48
    assert not ledger.quarantine


def test_views_of_ones_own_files_are_of_their_images(extension, tmp_path):
    extension("arrays")
    colours = write_arrays(tmp_path)
    manifest = open_source(str(tmp_path)).manifest
    view = override(quickstart(), {"view.jitter": 0.0}).view
    samples = draw_unseen(manifest, SampleConfig(seed=0, view=view, patch_px=64), 48)
    for unit, row, pixels in zip(samples["unit"], samples["row"], samples["patch_view"], strict=True):
        assert (pixels == colours[16 * unit + row]).all()


@pytest.mark.parametrize("path", ["noise://many", "nowhere://3"])
def test_a_wrong_path_is_refused_in_a_line(extension, tmp_path, path):
    extension("arrays")
    with pytest.raises(UserError, match=re.escape(path.partition("://")[0])):
        pretrain(override(quickstart(), {**OPTIONS, "data.train": path, "output.root": str(tmp_path)}))
    assert not list(tmp_path.iterdir())
