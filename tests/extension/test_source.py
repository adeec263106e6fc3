"""A source in a file of one's own is opened by `data.train`, and read in the stream's tasks."""

from pathlib import Path

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import pretrain
from pipelines.sources import open_source
from pipelines.sources.kinds import SCHEMES
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
    for path in ("noise://3", "NOISE://3"):
        assert data_line(open_source(path).manifest) == "data: 48 images in 3 units (noise)"
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


@pytest.mark.parametrize(
    ("path", "cause", "remedy"),
    [
        ("noise://many", "does not say how many units there are", "write noise://4, for example"),
        ("noise://", "does not say how many units there are", "write noise://4, for example"),
        ("nois://3", "begins with an unknown scheme", "perhaps you meant noise://3; give a local path, or"),
        ("nowhere://3", "begins with an unknown scheme", "give a local path, or one that begins with s3://"),
    ],
)
def test_a_wrong_path_is_refused_with_a_remedy_before_anything_is_written(
    extension, tmp_path, path, cause, remedy
):
    extension("arrays")
    with pytest.raises(UserError) as refused:
        pretrain(override(quickstart(), {"data.train": path, "output.root": str(tmp_path)}))
    assert refused.value.cause == f"data.train={path} {cause}"
    assert refused.value.remedy.startswith(remedy)
    assert "noise://" in refused.value.remedy, "what is registered is named too"
    assert not list(tmp_path.iterdir())


def test_without_its_registration_a_scheme_is_unknown(monkeypatch):
    monkeypatch.setattr(SCHEMES, "_choices", dict(SCHEMES._built_in))
    with pytest.raises(UserError, match=r"data\.train=noise://3 begins with an unknown scheme"):
        open_source("noise://3")
