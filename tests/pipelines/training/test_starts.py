"""A pretraining that begins with weights that are there: `--start`."""

from pathlib import Path

import pytest
import torch

from beit.errors import UserError
from beit.plain import override, to_dict
from beit.pretraining.model import Beit
from beit.vit.backbone import Backbone, initialise
from beit.vit.checkpoints import save_model
from pipelines.presets import pretrain as presets
from pipelines.pretrain import PretrainTask
from pipelines.runs import checkpoints
from pipelines.scenes.shards import write_scenes
from pipelines.training.pretraining import checked_tokenizer

CONFIG = presets.quickstart()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, images=32, seed=0, rows_per_group=16)
    return str(folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run with one checkpoint, made with the tokenizer of the quick start."""
    run = tmp_path_factory.mktemp("runs") / "first"
    checkpoint = run / "attempt-1" / "step-00000005"
    checkpoint.mkdir(parents=True)
    tokenizer = checked_tokenizer(CONFIG)
    extra = {"tokenizer": {"name": "scenes64", "digest": tokenizer.digest}, "view": to_dict(CONFIG.view)}
    save_model(Beit(CONFIG.model, tokenizer.vocab_size, seed=7), checkpoint, extra=extra)
    checkpoints.seal(checkpoint, step=5, seconds=1.0)
    return run


def prepared(scenes, tmp_path, start, **values):
    """The training, and the lines that describe it."""
    lines, values = [], {name.replace("__", "."): value for name, value in values.items()}
    options = {"data.train": scenes, "start": str(start), "output.root": str(tmp_path), "steps": 3}
    config = override(CONFIG, {**options, "optim.warmup_steps": 1, **values})
    training = PretrainTask().prepare(config, preset="test", say=lines.append)
    return training, [*lines, *PretrainTask().summary(training)]


def test_before_its_first_step_a_run_is_the_one_that_it_begins_with(scenes, tmp_path, pretrained):
    training, lines = prepared(scenes, tmp_path, pretrained)
    expected = Beit(CONFIG.model, 512, seed=7).state_dict()
    found = training.make_objective().model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert f"taken: {len(expected)} tensors" in lines
    kept = Path(training.config.start)
    assert kept.parent.parent == tmp_path / "starts", "the first run may go on and delete its checkpoint"
    again, _ = prepared(scenes, tmp_path / "other", kept)
    assert again.config.start == str(kept)
    assert training.inputs["start"] == again.inputs["start"]


def test_another_resolution_resamples_positions_and_keeps_the_head(scenes, tmp_path, pretrained):
    _, lines = prepared(scenes, tmp_path, pretrained, model__image_size=32, tokenizer__image_size=32)
    assert any(line.startswith("taken: ") and "1 of them positions resampled" in line for line in lines)
    assert not any("lm_head" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tokenizer__name": "random-dalle"}, "of another tokenizer, or of one unknown"),
        ({"target__kind": "pixels"}, "predicts tokens, not pixels"),
    ],
)
def test_a_head_that_predicts_something_else_is_fresh_and_that_is_said(
    scenes, tmp_path, pretrained, values, reason
):
    training, lines = prepared(scenes, tmp_path, pretrained, **values)
    assert f"dropped: lm_head.weight ({reason})" in lines
    assert any(line.startswith("fresh: lm_head") for line in lines)
    model = training.make_objective().model
    fresh = Beit(CONFIG.model, model.vocab_size, target=model.target)
    assert torch.equal(model.lm_head.weight, fresh.lm_head.weight), "drawn from the run's own seed"
    assert torch.equal(model.mask_token, Beit(CONFIG.model, 512, seed=7).mask_token)


def test_a_backbone_alone_is_enough(scenes, tmp_path):
    backbone = Backbone(CONFIG.model)
    initialise(backbone, torch.Generator().manual_seed(3))
    save_model(backbone, tmp_path / "vit", extra={"view": to_dict(CONFIG.view)})
    training, lines = prepared(scenes, tmp_path, tmp_path / "vit")
    assert any(line.startswith("fresh: ") and "mask_token" in line for line in lines)
    found = training.make_objective().model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("start", "values", "message"),
    [
        ("nowhere", {}, "nowhere holds no model"),
        (None, {"model__depth": 2}, "model.depth=4 there, 2 here"),
        (None, {"model__layer_scale": 0.1}, "model.layer_scale=None there, 0.1 here"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_starts(
    scenes, tmp_path, pretrained, start, values, message
):
    with pytest.raises(UserError, match=message):
        prepared(scenes, tmp_path, start or pretrained, **values)
