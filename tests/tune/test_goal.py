from dataclasses import replace

import pytest

from beit.config import MaskConfig, TargetConfig
from beit.errors import UserError
from beit.plain import override
from pipelines.runs import evaluations
from tune.config import sweep_preset
from tune.goal import GOALS, check_goal, evaluated
from tune.state import points_of


def test_trials_of_different_mask_ratios_are_judged_on_the_same_masks_unless_accuracy_is_the_objective():
    base = sweep_preset("quickstart").pretraining()
    trials = [override(base, {"mask.ratio": ratio}) for ratio in (0.2, 0.6)]
    assert {evaluated(trial, "loss", 1000).evaluation.mask for trial in trials} == {MaskConfig()}
    assert [evaluated(trial, "accuracy", 1000).evaluation.mask.ratio for trial in trials] == [0.2, 0.6]


def test_accuracy_counts_from_what_the_commonest_token_gives():
    value = GOALS["accuracy"].value
    assert value({"eval/accuracy": 0.1, "eval/majority": 0.1}) == 0
    assert value({"eval/accuracy": 1.0, "eval/majority": 0.1}) == 1
    assert value({"eval/accuracy": 0.55, "eval/majority": 0.1}) == pytest.approx(0.5)
    assert value({"train/accuracy": 0.5}) is None
    assert GOALS["loss"].value({"train/loss": 5.0}) is None
    assert GOALS["loss"].better(4.0, 5.0)
    assert not GOALS["accuracy"].better(0.4, 0.5)


def test_a_space_that_changes_the_task_is_refused():
    config = sweep_preset("quickstart")
    assert check_goal(config, ["mask.ratio", "model.dim"]) is GOALS["loss"]
    with pytest.raises(UserError, match=r"target\.kind"):
        check_goal(config, ["mask.ratio", "target.kind"])
    with pytest.raises(UserError, match="pixels"):
        check_goal(replace(config, objective="accuracy", target=TargetConfig(kind="pixels")), ["mask.ratio"])


def test_knn_is_read_from_a_runs_evaluations_and_compares_models_of_any_target(tmp_path):
    goal, config = GOALS["knn"], replace(sweep_preset("quickstart"), objective="knn")
    for step, top1 in ((20, {"2": 0.1, "4": 0.05}), (40, {"2": 0.15, "4": 0.2})):
        evaluations.save(str(tmp_path), "knn", step, {"top1": top1, "val_images": 10})
    assert points_of(goal.rows(str(tmp_path)), goal) == [(1, 20, 0.1), (2, 40, 0.2)]
    assert check_goal(config, ["target.kind"]) is goal
    with pytest.raises(UserError, match=r"knn\.val"):
        check_goal(override(config, {"data.train": "/images"}), ["mask.ratio"])


def test_knn_is_measured_at_as_many_pauses_as_there_are_points():
    config = override(sweep_preset("quickstart").pretraining(), {"evaluation.points": 3})
    assert config.total_steps(1000, 32) == 62
    assert evaluated(config, "knn", 1000).knn.every_steps == 21, "after steps 21, 42 and 62"
