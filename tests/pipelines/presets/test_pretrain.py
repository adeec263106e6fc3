"""The published recipes: their totals, their schedules, and what a dry run prints."""

import dataclasses
import json

import numpy as np
import pytest

from beit.config import MaskConfig, TargetConfig
from beit.errors import UserError
from beit.objectives.optim import check_schedule, learning_rate
from beit.plain import override
from pipelines.presets.pretrain import PRESETS, meant_for, pretrain_preset
from pipelines.training import recipe
from pipelines.training.pretraining import check_config, explain

IMAGENET = [name for name in PRESETS if PRESETS[name]().model.image_size == 224]
IMAGENET_1K = 1_281_167


def steps_of(name: str) -> int:
    config = PRESETS[name]()
    return config.total_steps(meant_for(name)[0], config.optim.global_batch_size)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_run_that_passes_its_own_checks(name):
    config = pretrain_preset(name)
    check_config(config)
    images = IMAGENET_1K if config.data.scenes == 4096 else config.data.scenes
    check_schedule(config.optim, config.total_steps(images, config.optim.global_batch_size))
    assert PRESETS[name].__doc__


@pytest.mark.parametrize(
    ("name", "total", "warmup"),
    [
        ("base", 500_000, 6_250),
        ("large", 500_000, 6_250),
        ("base-released", 500_000, 6_250),
        ("large-released", 500_000, 6_250),
        ("base-300", 187_500, 6_250),
        ("base-22k", 150 * (14_197_122 // 2048), 10_000),
        ("large-22k", 150 * (14_197_122 // 2048), 10_000),
    ],
)
def test_totals_are_the_published_ones(name, total, warmup):
    assert steps_of(name) == total
    assert PRESETS[name]().optim.warmup_steps == warmup
    epoch = override(PRESETS[name](), {"epochs": 1.0}).total_steps(IMAGENET_1K, 2048)
    assert epoch == 625


def test_without_whole_steps_no_image_is_left_over_and_small_data_is_never_rounded_down_to_nothing():
    config = PRESETS["base"]()
    every = dataclasses.replace(config, whole_steps=False)
    assert every.total_steps(IMAGENET_1K, 2048) == 800 * IMAGENET_1K // 2048
    assert config.total_steps(1000, 2048) == every.total_steps(1000, 2048) == 390


@pytest.mark.parametrize("name", IMAGENET)
def test_learning_rates_are_those_of_the_released_code_where_the_schedule_bends(name):
    """Its `cosine_scheduler`: numpy's linspace for the warmup, then the cosine over the steps that
    are left.
    """
    optim, total = PRESETS[name]().optim, steps_of(name)
    warmup = optim.warmup_steps
    decay = np.arange(total - warmup)
    schedule = np.concatenate(
        [
            np.linspace(0, optim.peak_lr, warmup),
            optim.min_lr + 0.5 * (optim.peak_lr - optim.min_lr) * (1 + np.cos(np.pi * decay / len(decay))),
        ]
    )
    assert len(schedule) == total
    for step in (0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1):
        assert learning_rate(step, optim, total) == pytest.approx(schedule[step], rel=1e-9), f"step {step}"
    assert schedule[warmup - 1] == schedule[warmup] == optim.peak_lr == 1.5e-3


def test_variants_differ_in_what_their_sources_say_and_nothing_else():
    def differences(one: str, other: str) -> dict[str, object]:
        return {
            name: value
            for name, value in dataclasses.asdict(PRESETS[one]()).items()
            if name != "view" and dataclasses.asdict(PRESETS[other]())[name] != value
        }

    assert differences("base-300", "base") == {"epochs": 300}
    assert set(differences("base-released", "base")) == {"model"}
    assert set(differences("base-22k", "base-released")) == {"epochs", "optim"}
    base, large, released = (PRESETS[name]() for name in ("base", "large", "large-released"))
    assert (base.model.position, base.model.layer_scale, base.optim.clip_norm) == ("absolute", None, 3.0)
    assert (large.model.dim, large.model.depth, large.model.heads, large.optim.clip_norm) == (
        1024,
        24,
        16,
        1.0,
    )
    assert (released.model.position, released.model.layer_scale) == ("relative", 1e-5)
    assert PRESETS["base-released"]().model.layer_scale == 0.1
    assert PRESETS["base-22k"]().view.mean == PRESETS["large-22k"]().view.std == (0.5, 0.5, 0.5)
    assert base.view.mean == (0.485, 0.456, 0.406)


def test_a_dry_run_shows_the_arithmetic():
    config = override(PRESETS["base"](), {"resources.workers": 16, "resources.micro_batch_size": 64})
    text = "\n".join(explain(config, "base"))
    for expected in (
        "1,281,167 images assumed, those of ImageNet-1k",
        "1,281,167 images / 2,048 = 625.57 steps, 625 of them whole, x 800 epochs",
        "500,000 x 2,048 images = 1,024,000,000 = 799.3 epochs",
        "2,048 images = 16 workers x 64 at once x 2 accumulated",
        "6,250 steps x 2,048 images",
        "at most 75 of 196 patches hidden, 74.5 on average = 38.0%",
        "0.0015 at 6,250",
        "at 499,999",
    ):
        assert expected in text
    assert "warning" not in text
    assert "ImageNet-22k" in "\n".join(explain(PRESETS["large-22k"](), "large-22k"))


def test_a_dry_run_refuses_tokens_that_do_not_lie_on_the_patches_without_reading_the_tokenizers_weights(
    tmp_path,
):
    assert "tokenizer: dalle, 112 px = 14 x 14 visual tokens of 8 px" in explain(PRESETS["base"](), "base")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"digest": "", "config": {}, "px_per_token": 16}))
    (tmp_path / "tokenizer.safetensors").touch()
    for options, expected in (
        (
            {"tokenizer.image_size": 256},
            "256 gives 32 x 32 visual tokens, but model.image_size=224 gives 14 x 14 patches",
        ),
        (
            {"model.image_size": 384},
            "112 gives 14 x 14 visual tokens, but model.image_size=384 gives 24 x 24 patches",
        ),
        ({"tokenizer.name": "scenes64", "tokenizer.image_size": 64}, "64 gives 8 x 8 visual tokens"),
        ({"tokenizer.path": str(tmp_path)}, "112 gives 7 x 7 visual tokens"),
        ({"tokenizer.name": "unknown"}, "neither a built-in name nor a folder"),
    ):
        with pytest.raises(UserError, match=expected):
            explain(override(PRESETS["base"](), options), "base")
    pixels = override(PRESETS["base"](), {"tokenizer.image_size": 256, "target.kind": "pixels"})
    assert explain(pixels, "base")


def test_a_dry_run_counts_the_images_that_are_there(real_data):
    path = str(real_data / "tiny-imagenet")
    config = override(PRESETS["tiny64"](), {"data.train": path})
    text = "\n".join(explain(config, "tiny64"))
    assert "assumed" not in text
    assert " images in " in text


def test_photographs_with_the_tokens_of_scenes_are_warned_of_with_what_makes_others():
    photographs = override(PRESETS["tiny64"](), {"data.train": "my photographs"})
    (line,) = recipe.warnings(photographs, preset="tiny64", total_steps=500_000, scenes=False)
    assert "beit tokenizer train photo64 --data.train 'my photographs'" in line
    for others in ({"data.train": None}, {"tokenizer.path": "runs/photo64"}, {"target.kind": "pixels"}):
        assert (
            recipe.warnings(override(photographs, others), preset="tiny64", total_steps=500_000, scenes=False)
            == []
        )
    assert recipe.warnings(photographs, preset="tiny64", total_steps=500_000, scenes=True) == []


def test_another_batch_at_the_same_learning_rate_is_warned_of_with_the_rate_in_proportion():
    smaller = override(PRESETS["base"](), {"optim.global_batch_size": 512})
    (line,) = recipe.warnings(smaller, preset="base", total_steps=500_000, scenes=False)
    assert "512 images a step instead of base's 2,048" in line
    assert "--optim.peak-lr 0.000375" in line
    chosen = override(smaller, {"optim.peak_lr": 7.5e-4})
    assert recipe.warnings(chosen, preset="base", total_steps=500_000, scenes=False) == []
    assert recipe.warnings(smaller, preset="custom", total_steps=500_000, scenes=False) == []


def test_what_options_say_to_each_other_is_checked():
    base = PRESETS["base"]()
    with pytest.raises(UserError, match=r"data\.tokens=there holds tokens, and target\.kind=pixels"):
        check_config(override(base, {"data.tokens": "there", "target.kind": "pixels"}))
    with pytest.raises(UserError, match=r"mask\.ratio=0 hides no patch"):
        check_config(dataclasses.replace(base, mask=MaskConfig(ratio=0)))
    check_config(dataclasses.replace(base, mask=MaskConfig(ratio=0), target=TargetConfig(positions="all")))
