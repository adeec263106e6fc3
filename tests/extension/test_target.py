"""A target in a file of one's own is chosen by its name; workers that do not know the name train on it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from beit.errors import UserError
from beit.loading import load_model
from beit.plain import override
from beit.pretraining.model import Beit
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import rebuild_report
from pipelines.runs.metrics import read_metrics
from pipelines.training.pretraining import explain
from tune.config import sweep_preset
from tune.goal import GOALS
from tune.state import read_trials
from tune.sweep import sweep

OPTIONS = {"target.kind": "brightness", "steps": 3, "optim.global_batch_size": 16, "optim.warmup_steps": 1}


def test_a_target_of_ones_own_trains_and_is_told_in_its_own_words(extension, pretrained):
    run, lines = pretrained.result.run, pretrained.lines
    assert "target: the brightness, one of 16 levels, of every hidden patch" in lines
    assert "warning: colours are jittered" in lines
    assert any(re.search(r"loss \d.\d{3} \(unigram \d.\d{3}\) \| acc .* \(majority", line) for line in lines)
    rows = read_metrics(run)
    assert rows[0]["train/loss"] == pytest.approx(np.log(16), abs=0.5), "guessing one of 16"
    counts = json.loads(Path(pretrained.result.checkpoint, "targets.json").read_text())["counts"]
    assert sum(counts) == 3 * 16 * 16, "16 hidden patches of every image"
    model = load_model(Path(run, "model"), Beit)
    assert (model.target, model.vocab_size) == ("brightness", 16)
    page = Path(run, "report", "index.html").read_text()
    for expected in ("always the commonest level", "brightness of every patch", "of 16 levels occurred"):
        assert expected in page
    assert "beit pretrain --resume" not in page, "beit alone does not know the target"
    assert not any(line.startswith("next, ") for line in lines)
    for name in ("brightness", "stripes", "arrays"):
        extension(name)
    assert "brightness of every patch" in Path(rebuild_report(run)).read_text()


def test_what_it_predicts_is_said_by_a_dry_run_and_a_name_that_is_close_is_suggested(extension):
    extension("brightness")
    config = override(quickstart(), OPTIONS)
    assert "target: the brightness, one of 16 levels, of every hidden patch" in explain(config, "quickstart")
    with pytest.raises(UserError, match="perhaps you meant brightness"):
        explain(override(config, {"target.kind": "brightnes"}), "quickstart")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_trials_of_a_sweep_know_targets_masks_and_sources_of_ones_own(extension, tmp_path):
    for name in ("brightness", "stripes", "arrays"):
        extension(name)
    (tmp_path / "space.json").write_text(json.dumps({"optim.peak_lr": [1e-3]}))
    options = {
        **OPTIONS,
        "data.train": "noise://3",
        "mask.kind": "stripes",
        "mask.ratio": 0.3,
        "evaluation.mask.kind": "stripes",
        "evaluation.images": 16,
        "evaluation.points": 1,
        "stop_early": False,
        "space": str(tmp_path / "space.json"),
        "output.root": str(tmp_path),
        "output.name": "bright",
        "output.mlflow": False,
    }
    sweep(override(sweep_preset("quickstart"), options), preset="quickstart")
    (trial,) = read_trials(str(tmp_path / "bright"), GOALS["loss"])
    assert trial.status == "finished"
    hidden = {row["train/hidden"] for row in read_metrics(str(tmp_path / "bright" / "trial-000"))}
    assert hidden == {0.25}, "stripes: 16 of 64 patches"
