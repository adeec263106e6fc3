"""Configs: what they refuse, and their way through JSON and dotted names."""

import json
import re
from dataclasses import dataclass, field

import pytest

from beit.config import MaskConfig, ModelConfig, OptimConfig, TokenizerConfig, ViewConfig, from_dict, override, to_dict
from beit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Run:
    """A config with nested ones, as pipelines have."""

    steps: int = 5
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(layer_scale=0.1, position="relative"),
        TokenizerConfig(path="/x"),
        ViewConfig(mean=(0.5, 0.5, 0.5)),
        MaskConfig(min_block=4),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_comes_back_from_json_as_it_was(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"dept": 3}}, "model.dept is not a field of ModelConfig"),
        ({"model": {"depth": "3"}}, "model.depth='3' has the wrong type"),
        ({"model": {"depth": True}}, "model.depth=True has the wrong type"),
        ({"model": {"position": "rotary"}}, "model.position='rotary' has the wrong type"),
        ({"model": 3}, "model=3 is not a table of fields"),
        ({"model": {"dim": 100, "heads": 3}}, "model.dim=100 cannot be divided among model.heads=3"),
    ],
)
def test_what_json_gets_wrong_is_named_with_its_dots(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_dict(Run, values)


def test_whole_numbers_stand_for_floats():
    assert from_dict(OptimConfig, {"clip_norm": 1}).clip_norm == 1.0
    assert isinstance(from_dict(OptimConfig, {"clip_norm": 1}).clip_norm, float)


def test_overriding_by_dotted_names_changes_only_those():
    changed = override(Run(), {"optim.peak_lr": 1e-2, "steps": 7})
    assert changed == Run(steps=7, optim=OptimConfig(peak_lr=1e-2))
    for wrong in ("optim.lr", "optimizer.peak_lr", "steps.more"):
        with pytest.raises(UserError, match=f"{wrong} is not a field of Run"):
            override(Run(), {wrong: 1})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ModelConfig(image_size=230), "model.image_size=230 is not a multiple of model.patch_size=16\nset model.image_size=224"),
        (lambda: ModelConfig(drop_path=1.0), "model.drop_path=1.0"),
        (lambda: ViewConfig(min_area=0.5, max_area=0.2), "view.min_area=0.5 and view.max_area=0.2"),
        (lambda: ViewConfig(aspect=0.5), "view.aspect=0.5 is below 1\nset view.aspect=2"),
        (lambda: MaskConfig(ratio=1.0), "mask.ratio=1.0"),
        (lambda: OptimConfig(min_lr=1.0), "optim.min_lr=1 is not between 0 and optim.peak_lr=0.0015"),
        (lambda: OptimConfig(warmup_steps=-1), "optim.warmup_steps=-1 is negative\nset 0"),
        (lambda: OptimConfig(global_batch_size=0), "optim.global_batch_size=0"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_fix(build, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build()


def test_the_paper_hides_75_of_196_patches_and_other_grids_the_same_share():
    assert (MaskConfig().budget(14), MaskConfig().block(14)) == (75, 16)
    assert MaskConfig().budget(6) == round(75 / 196 * 36)
    assert MaskConfig(ratio=0.001).budget(4) == 1, "never none: a mean over nothing is not a number"


def test_a_budget_below_the_smallest_rectangle_is_refused():
    MaskConfig().check(14)
    MaskConfig().check(6)
    MaskConfig(ratio=0.05, kind="random").check(14)
    with pytest.raises(UserError, match=re.escape("mask.ratio=0.05 hides at most 10 of 196 patches")):
        MaskConfig(ratio=0.05).check(14)


def test_an_error_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(UserError("a is 1", "set a=2")))
    assert (error.cause, error.remedy, str(error)) == ("a is 1", "set a=2", "a is 1\nset a=2")
