import json
from pathlib import Path

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.runs import run_folder
from tune import sweep as sweep_module
from tune.config import sweep_preset
from tune.prepare import make_design, prepare


def prepared(tmp_path, **values):
    config = override(
        sweep_preset("quickstart"),
        {"output.root": str(tmp_path / "runs"), "data.scenes": 32, "steps": 4, **values},
    )
    return prepare(config, make_design(config), preset="quickstart", say=lambda line: None)


def write_space(tmp_path, content):
    (tmp_path / "space.py").write_text(f"import ray.tune\nSPACE = {content}\n")
    return str(tmp_path / "space.py")


def test_what_optuna_might_suggest_is_tried_before_the_first_trial(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    space = write_space(tmp_path, "{'optim.peak_lr': ray.tune.uniform(-2.0, -1.0)}")
    with pytest.raises(UserError, match=r"optim\.peak_lr=-1"):
        prepared(tmp_path, search="optuna", space=space)
    space = write_space(tmp_path, "{'mask.ratio': ray.tune.uniform(0.01, 0.02)}")
    with pytest.raises(UserError, match=r"a trial with mask\.ratio=0\.01"):
        prepared(tmp_path, search="optuna", space=space)
    assert prepared(tmp_path, search="optuna", trials=3).design.trials == 3


def test_tokens_that_lie_on_no_patches_are_refused_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.session.start", lambda **options: pytest.fail("Ray was started"))
    config = override(
        sweep_preset("quickstart"),
        {"output.root": str(tmp_path / "runs"), "data.scenes": 32, "model.image_size": 96},
    )
    with pytest.raises(UserError, match=r"tokenizer\.image_size=64 gives"):
        sweep_module.sweep(config, say=lambda line: None)


def test_a_given_cache_must_be_there_and_hold_the_tokens_of_all_trials(tmp_path):
    with pytest.raises(UserError, match="is no token cache"):
        prepared(tmp_path, **{"data.tokens": str(tmp_path / "nothing")})
    space = write_space(tmp_path, "{'view.min_area': ray.tune.uniform(0.1, 0.2)}")
    with pytest.raises(UserError, match=r"the space changes view\.min_area"):
        prepared(tmp_path, space=space, **{"data.tokens": str(tmp_path / "nothing")})


def test_a_sweep_is_gone_on_with_from_another_folder_and_with_the_tuples_of_its_space(tmp_path, monkeypatch):
    write_space(tmp_path, "{'view.background': ray.tune.grid_search([(0, 0, 0), (255, 255, 255)])}")
    monkeypatch.chdir(tmp_path)
    begun = prepared(tmp_path, space="space.py", **{"output.name": "mine"})
    folder = sweep_module._open_folder(begun, None)
    monkeypatch.chdir("/")
    saved, preset = run_folder.saved_config(folder, type(begun.config), job="sweep")
    again = prepare(saved, make_design(saved), preset=preset, say=lambda line: None)
    assert sweep_module._open_folder(again, folder) == folder
    Path(folder, "plan.json").write_text(json.dumps([{"view.background": [1, 1, 1]}]))
    with pytest.raises(UserError, match="draws other trials"):
        sweep_module._open_folder(again, folder)
