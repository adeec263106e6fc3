from dataclasses import replace

import pytest

from beit.config import MaskConfig, TargetConfig, override
from beit.errors import UserError
from tune.config import sweep_preset
from tune.goal import GOALS, check_goal, evaluated


def test_trials_of_different_mask_ratios_are_judged_on_the_same_masks_unless_accuracy_is_the_objective():
    base = sweep_preset("quickstart").pretraining()
    trials = [override(base, {"mask.ratio": ratio}) for ratio in (0.2, 0.6)]
    assert {evaluated(trial, "loss").evaluation.mask for trial in trials} == {MaskConfig()}
    assert [evaluated(trial, "accuracy").evaluation.mask.ratio for trial in trials] == [0.2, 0.6]


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
