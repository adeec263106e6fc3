"""Parameter groups and the learning rate of every step."""

import dataclasses
import math

import pytest
import torch

from beit.classification.model import Classifier
from beit.config import ModelConfig, OptimConfig
from beit.errors import UserError
from beit.objectives.optim import build_optimizer, check_schedule, layer_of, learning_rate
from beit.pretraining.model import Beit
from beit.segmentation.config import SegmentViewConfig
from beit.segmentation.model import Segmenter
from beit.segmentation.objective import SegmentObjective

CONFIG = OptimConfig(peak_lr=1e-3, min_lr=1e-5, warmup_steps=10)


def names_by_decay(config: ModelConfig) -> dict[float, set[str]]:
    model = Beit(config, 8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, OptimConfig()).param_groups
    return {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups
    }


def test_weights_the_mask_token_and_bias_tables_decay_and_nothing_else():
    small = {"image_size": 32, "dim": 8, "depth": 1, "heads": 2}
    weights = {"mask_token", "patch_embed.proj.weight", "lm_head.weight"}
    weights |= {f"blocks.0.{layer}.weight" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    paper = names_by_decay(ModelConfig(**small))
    released = names_by_decay(ModelConfig(**small, position="relative", layer_scale=0.1))
    assert paper[0.05] == weights
    assert released[0.05] == weights | {"rel_pos_bias.relative_position_bias_table"}
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.q_bias", "lm_head.bias"} <= paper[0.0]
    assert {"cls_token", "blocks.0.gamma_1", "blocks.0.norm2.bias"} <= released[0.0]


def test_of_a_segmenter_positions_and_class_token_decay_too_as_the_authors_have_it():
    sizes = ModelConfig(image_size=32, dim=8, depth=1, heads=2)
    generator = torch.Generator().manual_seed(0)
    model = Segmenter(sizes, 3, head="setr-pup", channels=4, generator=generator)
    trained = SegmentObjective(
        model, OptimConfig(weight_decay=0.1), SegmentViewConfig(), total_steps=10, seed=0
    )
    decayed = {
        id(parameter)
        for group in trained.optimizer().param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    found = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert {"backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.proj.weight"} <= found
    assert not any(name.endswith("bias") for name in found)


def test_a_step_moves_every_layer_by_its_own_rate_as_a_plain_recomputation_does():
    config = ModelConfig(
        image_size=32, dim=8, depth=3, heads=2, position="relative-per-block", layer_scale=0.1
    )
    optim, decay = OptimConfig(peak_lr=1e-2, weight_decay=0.1), 0.65
    model = Classifier(config, 5, generator=torch.Generator().manual_seed(0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer = build_optimizer(model, optim, layer_decay=decay, depth=3)
    for group in optimizer.param_groups:
        group["lr"] = optim.peak_lr * group["lr_scale"]
    optimizer.step()
    power = {
        "cls_token": 4,
        "patch_embed": 4,
        "blocks.0": 3,
        "blocks.1": 2,
        "blocks.2": 1,
        "fc_norm": 0,
        "head": 0,
    }
    for name, parameter in model.named_parameters():
        rate = 1e-2 * decay ** next(value for start, value in power.items() if name.startswith(start))
        undecayed = parameter.ndim == 1 or name == "cls_token"
        old, grad = before[name], parameter.grad
        # AdamW's first step: its running means, corrected for their start at 0, are the gradient and its
        # square.
        expected = old * (1 if undecayed else 1 - rate * 0.1) - rate * grad / (grad.abs() + optim.eps)
        torch.testing.assert_close(parameter.detach(), expected)


def test_the_decay_of_layers_finds_the_backbone_within_a_model():
    names = [
        "backbone.pos_embed",
        "backbone.blocks.2.mlp.fc1.weight",
        "backbone.blocks.11.norm1.bias",
        "decoder.blocks.0.weight",
    ]
    assert [layer_of(name, 12) for name in names] == [0, 3, 12, 13]
    assert layer_of("rel_pos_bias.relative_position_bias_table", 12) == 13


def test_parameters_that_do_not_train_are_left_out():
    model = Beit(ModelConfig(image_size=32, dim=8, depth=1, heads=2), 8)
    model.lm_head.requires_grad_(False)
    held = {
        id(parameter)
        for group in build_optimizer(model, OptimConfig()).param_groups
        for parameter in group["params"]
    }
    assert id(model.lm_head.weight) not in held
    assert len(held) == len(list(model.parameters())) - 2


def test_an_optimizer_step_is_that_of_the_adamw_formulas():
    config = OptimConfig(peak_lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-3)
    layer = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(layer, config)
    expected = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    square = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in (1, 2):
        for name, parameter in layer.named_parameters():
            gradient = torch.full_like(parameter, 0.5 * step)
            parameter.grad = gradient
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.9 * square[name] + 0.1 * gradient**2
            decay = 0.3 if name == "weight" else 0.0
            update = mean[name] / (1 - 0.8**step) / ((square[name] / (1 - 0.9**step)).sqrt() + 1e-3)
            expected[name] = expected[name] * (1 - 0.1 * decay) - 0.1 * update
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_the_learning_rate_rises_to_the_peak_and_falls_along_a_cosine():
    rates = [learning_rate(step, CONFIG, 110) for step in range(110)]
    warmup = [1e-3 * step / 9 for step in range(10)]
    decay = [1e-5 + (1e-3 - 1e-5) / 2 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert rates == pytest.approx(warmup + decay, rel=1e-9)
    assert (rates[0], rates[9], rates[10]) == pytest.approx((0, 1e-3, 1e-3))
    assert rates[11] < rates[10]
    assert 1e-5 < rates[109] < 1.1e-5


@pytest.mark.parametrize(
    ("warmup", "total", "rates"),
    [
        (0, 2, [1e-3, 5.05e-4, 1e-5, 1e-5]),
        (1, 3, [0, 1e-3, 5.05e-4, 1e-5]),
        (3, 3, [0, 5e-4, 1e-3, 1e-3]),
        (5, 3, [0, 2.5e-4, 5e-4, 7.5e-4]),
    ],
    ids=["no warmup", "one step of warmup", "only warmup", "cut off in the warmup"],
)
def test_the_learning_rate_of_short_runs_and_behind_their_end(warmup, total, rates):
    config = dataclasses.replace(CONFIG, warmup_steps=warmup)
    assert [learning_rate(step, config, total) for step in range(4)] == pytest.approx(rates)


def test_a_warmup_as_long_as_the_run_is_refused_with_one_that_fits():
    check_schedule(CONFIG, 11)
    with pytest.raises(UserError, match=r"optim.warmup_steps=10 .*\n.*optim.warmup_steps=0"):
        check_schedule(CONFIG, 10)
    with pytest.raises(UserError, match=r"optim.warmup_steps=None: this job counts its warmup in steps"):
        check_schedule(dataclasses.replace(CONFIG, warmup_steps=None), 10)
