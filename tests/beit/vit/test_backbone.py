"""The Vision Transformer against plain re-computations."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from beit.config import ModelConfig
from beit.vit.attention import relative_position_index
from beit.vit.backbone import Backbone, Block, draw_paths, initialise
from beit.vit.layers import PatchEmbed

SMALL = ModelConfig(image_size=48, dim=24, depth=3, heads=3, drop_path=0.0)
RELATIVE = ModelConfig(
    image_size=48, dim=24, depth=3, heads=3, drop_path=0.0, position="relative", layer_scale=0.1
)
PER_BLOCK = dataclasses.replace(RELATIVE, position="relative-per-block")


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that no bias is 0 and no gain is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_embedded_like_a_convolution_does():
    embed = randomised(PatchEmbed(16, 24))
    pixels = drawn(2, 3, 48, 64)
    expected = (
        nn.functional.conv2d(pixels, embed.proj.weight, embed.proj.bias, stride=16).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(embed(pixels), expected, rtol=1e-4, atol=1e-5)


def plain_block(block: Block, tokens: torch.Tensor, bias: torch.Tensor | None, heads: int) -> torch.Tensor:
    """The block from its formulas, one image and one head at a time, without skipped branches."""

    def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    results = []
    for x in tokens:
        dim = x.shape[-1]
        width = dim // heads
        normed, mixed = norm(x, block.norm1), []
        weight_q, weight_k, weight_v = (
            block.attn.qkv.weight[:dim],
            block.attn.qkv.weight[dim : 2 * dim],
            block.attn.qkv.weight[2 * dim :],
        )
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q = normed @ weight_q[part].T + block.attn.q_bias[part]
            k = normed @ weight_k[part].T
            v = normed @ weight_v[part].T + block.attn.v_bias[part]
            logits = q @ k.T / math.sqrt(width) + (0 if bias is None else bias[head])
            shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
            mixed.append(shares @ v)
        branch = torch.cat(mixed, -1) @ block.attn.proj.weight.T + block.attn.proj.bias
        x = x + (1 if block.gamma_1 is None else block.gamma_1) * branch
        hidden = norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        branch = hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        results.append(x + (1 if block.gamma_2 is None else block.gamma_2) * branch)
    return torch.stack(results)


@pytest.mark.parametrize("config", [SMALL, RELATIVE], ids=["paper", "released"])
def test_a_block_computes_the_formulas(config):
    block = randomised(Block(config))
    tokens = drawn(2, config.patches + 1, config.dim)
    bias = drawn(config.heads, config.patches + 1, config.patches + 1, seed=2) if config is RELATIVE else None
    torch.testing.assert_close(
        block(tokens, bias), plain_block(block, tokens, bias, config.heads), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("config", [SMALL, RELATIVE], ids=["paper", "released"])
def test_a_block_for_some_tokens_gives_what_it_gives_for_all(config):
    block = randomised(Block(config))
    tokens, paths = (
        drawn(3, config.patches + 1, config.dim),
        torch.tensor([[0.0, 2.0], [1.5, 0.0], [1.0, 1.0]]),
    )
    bias = drawn(config.heads, config.patches + 1, config.patches + 1, seed=2) if config is RELATIVE else None
    rows = torch.stack(
        [torch.randperm(config.patches + 1, generator=torch.Generator().manual_seed(i))[:4] for i in range(3)]
    )
    everything = block(tokens, bias, paths)
    expected = torch.stack([everything[image, rows[image]] for image in range(3)])
    torch.testing.assert_close(block(tokens, bias, paths, rows), expected, rtol=1e-4, atol=1e-5)


def test_hidden_patches_are_replaced_behind_the_projection_and_then_get_their_position():
    backbone = randomised(Backbone(SMALL, with_mask_token=True))
    pixels, mask = drawn(2, 3, 48, 48), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4] = mask[1, 0] = True
    tokens = backbone.embed(pixels, mask)
    visible = backbone.patch_embed(pixels)
    for image in range(2):
        torch.testing.assert_close(tokens[image, 0], (backbone.cls_token + backbone.pos_embed[:, :1])[0, 0])
        for patch in range(9):
            content = backbone.mask_token[0, 0] if mask[image, patch] else visible[image, patch]
            torch.testing.assert_close(tokens[image, 1 + patch], content + backbone.pos_embed[0, 1 + patch])


@pytest.mark.parametrize("config", [RELATIVE, PER_BLOCK], ids=["shared table", "table a block"])
def test_features_are_the_tokens_behind_the_blocks_asked_for(config):
    backbone = randomised(Backbone(config)).eval()
    pixels = drawn(2, 3, 48, 48)
    tokens, index = backbone.embed(pixels), relative_position_index(3, 3)
    behind = []
    for block in backbone.blocks:
        owner = backbone.rel_pos_bias if config is RELATIVE else block.attn
        tokens = plain_block(
            block, tokens, owner.relative_position_bias_table[index].permute(2, 0, 1), config.heads
        )
        behind.append(tokens)
    first, last = backbone.features(pixels, blocks=(0, -1), norm=False)
    torch.testing.assert_close(first, behind[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, behind[2], rtol=1e-4, atol=1e-4)
    (normed,) = backbone.features(pixels)
    torch.testing.assert_close(normed, backbone.norm(behind[2]), rtol=1e-4, atol=1e-4)
    rows = torch.tensor([[0], [7]])
    first, some = backbone.features(pixels, blocks=(0, 2), rows=rows, norm=False)
    torch.testing.assert_close(first, behind[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        some[:, 0], torch.stack([behind[2][0, 0], behind[2][1, 7]]), rtol=1e-4, atol=1e-4
    )


def test_images_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"48 x 64 pixels given to a model whose positions are for 48 x 48"):
        Backbone(SMALL).features(drawn(1, 3, 48, 64))


def test_skipped_branches_keep_their_expectation_and_grow_linearly_with_depth():
    factors = draw_paths(torch.Generator().manual_seed(0), images=40_000, blocks=5, rate=0.4)
    skipped = (factors == 0).float().mean((0, 2))
    torch.testing.assert_close(skipped, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.006)
    torch.testing.assert_close(factors.mean((0, 2)), torch.ones(5), rtol=0, atol=0.012)


def test_halves_of_a_batch_skip_what_the_whole_does():
    whole = draw_paths(torch.Generator().manual_seed(3), images=10, blocks=4, rate=0.5)
    generator = torch.Generator().manual_seed(3)
    halves = [draw_paths(generator, images=count, blocks=4, rate=0.5) for count in (3, 7)]
    assert torch.equal(whole, torch.cat(halves))


def test_training_with_skipped_branches_needs_a_generator():
    backbone = Backbone(ModelConfig(image_size=48, dim=24, depth=2, heads=3, drop_path=0.1)).train()
    with pytest.raises(ValueError, match="needs a generator"):
        backbone.features(drawn(1, 3, 48, 48))


def test_weights_are_drawn_within_one_standard_deviation_and_shrink_with_depth():
    backbone = Backbone(ModelConfig(image_size=48, dim=96, depth=4, heads=3), with_mask_token=True)
    initialise(backbone, torch.Generator().manual_seed(0))
    # A normal distribution cut at one standard deviation keeps 0.5396 of it.
    spread = 0.02 * 0.5396
    for number, block in enumerate(backbone.blocks, start=1):
        shrink = math.sqrt(2 * number)
        for weight, factor in (
            (block.attn.qkv.weight, 1),
            (block.mlp.fc1.weight, 1),
            (block.attn.proj.weight, shrink),
            (block.mlp.fc2.weight, shrink),
        ):
            assert weight.abs().max() <= 0.02 / factor * 1.0001
            assert weight.detach().std() * factor == pytest.approx(spread, rel=0.03)
    for parameter in (
        backbone.patch_embed.proj.weight,
        backbone.pos_embed,
        backbone.mask_token,
        backbone.cls_token,
    ):
        assert 0 < parameter.abs().max() <= 0.02
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_one_seed_builds_one_model_and_leaves_torchs_own_generator_alone():
    before = torch.random.get_rng_state()
    states = []
    for seed in (5, 5, 6):
        backbone = Backbone(RELATIVE, with_mask_token=True)
        initialise(backbone, torch.Generator().manual_seed(seed))
        states.append(backbone.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["blocks.0.mlp.fc1.weight"], states[2]["blocks.0.mlp.fc1.weight"])
    assert torch.equal(before, torch.random.get_rng_state())
