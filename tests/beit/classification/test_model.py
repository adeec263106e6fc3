"""The classifier: what its head sees, its names, sizes and first weights."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from beit.classification.model import Classifier
from beit.config import ModelConfig

CONFIG = ModelConfig(
    image_size=32, dim=24, depth=2, heads=3, drop_path=0.0, position="relative-per-block", layer_scale=0.1
)
LARGE = {"dim": 1024, "depth": 24, "heads": 16}
RELEASED = {"position": "relative-per-block", "layer_scale": 0.1}


def stirred(model: Classifier) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def pixels(images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_mean_pooling_takes_the_patches_without_the_class_token_and_norms_their_mean():
    model = stirred(Classifier(CONFIG, 5))
    (tokens,) = model.features(pixels(), norm=False)
    mean = sum(tokens[:, number] for number in range(1, 5)) / 4
    centred = mean - mean.mean(-1, keepdim=True)
    normed = (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * model.fc_norm.weight
        + model.fc_norm.bias
    )
    torch.testing.assert_close(
        model(pixels()), normed @ model.head.weight.T + model.head.bias, rtol=1e-4, atol=1e-5
    )


def test_class_token_pooling_takes_the_normed_class_token():
    model = stirred(Classifier(CONFIG, 5, pooling="cls"))
    (tokens,) = model.features(pixels(), norm=False)
    normed = F.layer_norm(tokens[:, 0], (24,), model.norm.weight, model.norm.bias, 1e-6)
    torch.testing.assert_close(
        model(pixels()), normed @ model.head.weight.T + model.head.bias, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("pooling", "norm"), [("mean", "fc_norm"), ("cls", "norm")])
def test_tensors_have_the_names_of_the_published_checkpoints(pooling, norm):
    names = set(Classifier(CONFIG, 5, pooling=pooling).state_dict())
    outside = {name for name in names if not name.startswith(("blocks.", "patch_embed."))}
    assert outside == {"cls_token", f"{norm}.weight", f"{norm}.bias", "head.weight", "head.bias"}
    assert "blocks.1.attn.relative_position_bias_table" in names


@pytest.mark.parametrize(
    ("options", "classes", "parameters"),
    [
        ({}, 1000, 86_558_440),
        ({**RELEASED}, 1000, 86_530_984),
        ({**RELEASED, "image_size": 384}, 1000, 86_744_104),
        ({**RELEASED}, 21_841, 102_557_713),
        ({**LARGE}, 1000, 304_302_056),
        ({**LARGE, **RELEASED}, 1000, 304_430_568),
        ({**LARGE, **RELEASED, "image_size": 384}, 1000, 304_998_888),
        ({**LARGE, **RELEASED, "image_size": 512}, 1000, 305_674_728),
        ({**LARGE, **RELEASED}, 21_841, 325_792_593),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_models_have_as_many_parameters_as_the_authors(options, classes, parameters, pooling):
    with torch.device("meta"):
        model = Classifier(ModelConfig(**options), classes, pooling=pooling)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_first_weights_are_the_authors_for_fine_tuning():
    config = ModelConfig(image_size=48, dim=96, depth=4, heads=3)
    model = Classifier(config, 200, generator=torch.Generator().manual_seed(0))
    for number, block in enumerate(model.blocks, start=1):
        for weight, factor in (
            (block.attn.qkv.weight, 1),
            (block.mlp.fc1.weight, 1),
            (block.attn.proj.weight, math.sqrt(2 * number)),
        ):
            assert weight.detach().std() * factor == pytest.approx(0.02, rel=0.04), (
                "cut at 100 standard deviations: not cut"
            )
            assert weight.detach().abs().max() * factor > 0.05
    assert model.pos_embed.detach().std() == pytest.approx(0.02, rel=0.1)
    bound = 1 / math.sqrt(3 * 16 * 16)
    for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias):
        assert 0.9 * bound < parameter.detach().abs().max() <= bound
    assert model.head.weight.detach().std() == pytest.approx(2e-5, rel=0.03)
    assert not model.head.bias.any()
    assert bool((model.fc_norm.weight == 1).all())
    assert not model.fc_norm.bias.any()
    scratch = Classifier(config, 200, head_scale=1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scratch.head.weight * 1e-3, model.head.weight)
    assert torch.equal(scratch.blocks[3].mlp.fc2.weight, model.blocks[3].mlp.fc2.weight)


def test_skipped_branches_are_drawn_from_the_generator():
    config = ModelConfig(image_size=32, dim=24, depth=2, heads=3, drop_path=0.5)
    model = stirred(Classifier(config, 5)).train()
    once, again, other = (
        model(pixels(8), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    with pytest.raises(ValueError, match="needs a generator"):
        model(pixels())


def test_every_class_has_a_name_or_none_has():
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        Classifier(CONFIG, 3, class_names=["cat", "dog"])
