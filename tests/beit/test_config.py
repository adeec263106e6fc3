"""Configs: what they refuse, and their conversion to JSON and from dotted names."""

import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from beit.checks import check
from beit.config import MaskConfig, ModelConfig, OptimConfig, TokenizerConfig, ViewConfig
from beit.errors import JobFailedError, UserError
from beit.plain import from_dict, override, to_dict


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
    with pytest.raises(UserError, match="perhaps you meant peak_lr; fields"):
        override(Run(), {"optim.peek_lr": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ModelConfig(image_size=230),
            "model.image_size=230 is not a multiple of model.patch_size=16\nset model.image_size=224",
        ),
        (ModelConfig(dim=0), "model.dim=0 is not positive\nset model.dim=768"),
        (ModelConfig(mlp_ratio=0), "model.mlp_ratio=0 is not positive\nset model.mlp_ratio=4"),
        (
            ModelConfig(layer_scale=-0.1),
            "model.layer_scale=-0.1 is not positive\nset a number above 0, or leave it out",
        ),
        (ModelConfig(drop_path=1.0), "model.drop_path=1.0 is not in [0, 1)\nset model.drop_path=0.1"),
        (TokenizerConfig(image_size=0), "tokenizer.image_size=0 is not positive"),
        (ViewConfig(min_area=0.5, max_area=0.2), "view.min_area=0.5 and view.max_area=0.2"),
        (ViewConfig(aspect=0.5), "view.aspect=0.5 is below 1\nset view.aspect=2"),
        (ViewConfig(aspect=0), "view.aspect=0 is not positive"),
        (ViewConfig(flip=2), "view.flip=2 is not between 0 and 1\nset view.flip=0.5"),
        (ViewConfig(jitter=-1), "view.jitter=-1"),
        (
            ViewConfig(std=(0.2, 0, 0.2)),
            "view.std=(0.2, 0, 0.2) is not positive\nset view.std=(0.229, 0.224, 0.225)",
        ),
        (ViewConfig(mean=(0.5, 0.5, 124)), "view.mean=(0.5, 0.5, 124) is not between 0 and 1"),
        (ViewConfig(background=(0, 0, 300)), "view.background=(0, 0, 300) is not between 0 and 255"),
        (
            ViewConfig(max_pixels=0),
            "view.max_pixels=0 is not positive\nset view.max_pixels=100000000",
        ),
        (MaskConfig(ratio=1.0), "mask.ratio=1.0"),
        (MaskConfig(min_block=0), "mask.min_block=0 is not positive\nset 1 or more, or leave it out"),
        (OptimConfig(min_lr=1.0), "optim.min_lr=1.0 is not between 0 and optim.peak_lr=0.0015"),
        (
            OptimConfig(warmup_steps=-1),
            "optim.warmup_steps=-1 is negative\nset optim.warmup_steps=6250",
        ),
        (OptimConfig(global_batch_size=0), "optim.global_batch_size=0"),
        (OptimConfig(weight_decay=-1), "optim.weight_decay=-1 is negative"),
        (OptimConfig(eps=0), "optim.eps=0 is not positive\nset optim.eps=1e-08"),
        (OptimConfig(peak_lr=math.inf), "optim.peak_lr=inf is not a finite number"),
        (OptimConfig(beta1=1), "optim.beta1=1 is not in [0, 1)"),
        (OptimConfig(clip_norm=0), "optim.clip_norm=0 is not positive"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_fix(config, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(config, message.partition(".")[0] + ".")


def test_the_paper_hides_75_of_196_patches_and_other_grids_the_same_share():
    assert (MaskConfig().budget(14), MaskConfig().block(14)) == (75, 16)
    assert MaskConfig().budget(6) == round(75 / 196 * 36)
    assert MaskConfig(ratio=0.001).budget(4) == 1, "never none: a mean over nothing is not a number"


@pytest.mark.parametrize("kind", [UserError, JobFailedError])
def test_an_error_survives_the_way_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("a is 1", "set a=2")))
    assert type(error) is kind
    assert (error.cause, error.remedy, str(error)) == ("a is 1", "set a=2", "a is 1\nset a=2")


def test_configs_import_nothing_heavy():
    modules = ("beit.classification", "beit.probing", "beit.segmentation", "beit.tokenizer")
    code = (
        f"import sys, {', '.join(f'{module}.config' for module in modules)}; "
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
