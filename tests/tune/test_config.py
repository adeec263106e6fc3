import json
from dataclasses import fields

import pytest

from beit.errors import UserError
from beit.plain import from_dict, override, to_dict
from pipelines.config.pretrain import EvaluationConfig, PretrainConfig
from pipelines.presets.pretrain import PRESETS, pretrain_preset
from tune.config import SWEEPS, SweepConfig, sweep_preset
from tune.state import Trial
from tune.tokens import Tokens, shareable
from tune.trial import check_trial, entry_of, trial_config


def test_a_trial_is_the_preset_with_its_parameters_and_a_folder_below_the_sweeps():
    base = sweep_preset("base").pretraining()
    for field in fields(PretrainConfig):
        if field.name != "evaluation":
            assert getattr(base, field.name) == getattr(pretrain_preset("base"), field.name)
    trial = trial_config(
        base, {"mask.ratio": 0.5}, objective="loss", images=1000, sweep="/runs/first", name="trial-003"
    )
    assert trial.mask.ratio == 0.5
    assert (trial.output.root, trial.output.name) == ("/runs/first", "trial-003")
    entry = entry_of(
        trial,
        Trial(number=3, params={"mask.ratio": 0.5}),
        preset="base",
        objective="loss",
        rows=2048 * 100,
        debug=False,
    )
    assert entry["total_steps"] == 80_000
    assert from_dict(PretrainConfig, json.loads(json.dumps(entry["config"]))).mask.ratio == 0.5


def test_a_short_trial_has_checkpoints_all_the_same():
    config = sweep_preset("quickstart").pretraining()
    entry = entry_of(
        config, Trial(number=0, params={}), preset="quickstart", objective="loss", rows=1000, debug=False
    )
    assert entry["total_steps"] == 62
    assert entry["config"]["output"]["checkpoint_steps"] == 15


def test_a_trial_that_predicts_no_tokens_reads_none():
    base = override(sweep_preset("quickstart").pretraining(), {"data.tokens": "/tokens"})
    kinds = {
        kind: trial_config(
            base, {"target.kind": kind}, objective="knn", images=1000, sweep="/runs/x", name="trial-000"
        ).data.tokens
        for kind in ("tokens", "pixels")
    }
    assert kinds == {"tokens": "/tokens", "pixels": None}


def test_every_preset_can_be_swept_and_a_saved_sweep_is_read_back():
    assert set(SWEEPS) == set(PRESETS)
    for name in SWEEPS:
        config = sweep_preset(name)
        assert from_dict(SweepConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_parameters_with_which_a_trial_could_not_begin_are_refused_before_the_first():
    base = sweep_preset("quickstart").pretraining()
    check_trial(base, {"mask.ratio": 0.5}, 1000, objective="loss")
    with pytest.raises(UserError) as raised:
        check_trial(base, {"mask.ratio": 0.01}, 1000, objective="loss")
    assert raised.value.cause.startswith("a trial with mask.ratio=0.01: ")
    with pytest.raises(UserError, match=r"optim\.rate"):
        check_trial(base, {"optim.rate": 1.0}, 1000, objective="loss")


def test_a_trial_without_tokens_beside_a_cache_can_begin_and_one_whose_tokens_miss_the_patches_cannot():
    base = override(sweep_preset("quickstart").pretraining(), {"data.tokens": "/tokens"})
    assert check_trial(base, {"target.kind": "pixels"}, 1000, objective="knn").data.tokens is None
    with pytest.raises(UserError, match=r"a trial with model\.image_size=96: tokenizer\.image_size="):
        check_trial(base, {"model.image_size": 96}, 1000, objective="knn")


def test_points_lie_evenly_over_a_run_and_the_last_at_its_end():
    evaluation = EvaluationConfig(images=8, points=4)
    assert evaluation.steps(62) == (16, 31, 46, 62)
    assert evaluation.steps(3) == (1, 2, 3)
    assert EvaluationConfig(points=4).steps(62) == ()


def test_trials_share_tokens_unless_the_space_changes_views_or_tokenizer():
    config = sweep_preset("quickstart").pretraining()
    assert shareable(config, ["mask.ratio", "optim.peak_lr", "view.mean", "model.dim"])
    for field in ("view.min_area", "seed", "tokenizer.path", "model.image_size"):
        assert not shareable(config, ["mask.ratio", field])


def test_what_one_tokenizer_saves_is_what_the_others_would_have_computed():
    tokens = Tokens(path="x", views=2000, parts=4, computed=4, seconds=10)
    assert (
        "the trials read 10,000, which would have taken 50 s in all if each trial had tokenised its own: "
        "40 s saved" in tokens.saved(10_000)
    )
    assert "nothing was tokenised" in Tokens(path="x", views=2000, parts=4, computed=0, seconds=3).saved(
        10_000
    )


def test_a_sweep_without_evaluation_is_refused():
    with pytest.raises(UserError, match=r"evaluation\.images=0"):
        SweepConfig()


def test_trials_that_would_be_broken_off_are_refused():
    with pytest.raises(UserError, match=r"--stop-at 10: trials that stop early cannot be compared"):
        override(sweep_preset("quickstart"), {"stop_at": 10})
