"""Masked image modelling: the model as a whole, its loss, and what is reported."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from beit.config import ModelConfig, OptimConfig, ViewConfig
from beit.images.pixels import normalise
from beit.pretraining.model import Beit
from beit.pretraining.objective import MimObjective
from beit.pretraining.targets import VisualTokens

PAPER = ModelConfig(image_size=64, dim=48, depth=3, heads=3, drop_path=0.0)
RELEASED = ModelConfig(
    image_size=64, dim=48, depth=3, heads=3, drop_path=0.0, position="relative", layer_scale=0.1
)
VARIANTS = pytest.mark.parametrize("config", [PAPER, RELEASED], ids=["paper", "released"])
VOCABULARY = 50
PALETTE = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 30]], np.uint8)


def objective(config: ModelConfig = PAPER, **options) -> MimObjective:
    options = {"target": VisualTokens(VOCABULARY), **options}
    return MimObjective(config, OptimConfig(), ViewConfig(), total_steps=100, seed=0, **options)


def batch_of(hidden: list[int], config: ModelConfig = PAPER, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images with these numbers of hidden patches."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((len(hidden), config.patches), bool)
    for image, count in enumerate(hidden):
        mask[image, rng.permutation(config.patches)[:count]] = True
    size = config.image_size
    columns = {
        "patch_view": rng.integers(0, 256, (len(hidden), size, size, 3), np.uint8),
        "tokens": rng.integers(0, VOCABULARY, (len(hidden), config.patches)).astype(np.int16),
        "mask": mask,
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def plain_logits(
    weights: dict[str, torch.Tensor], config: ModelConfig, pixels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The whole model from its formulas: every token through every layer, hidden positions selected at the
    very end.
    """
    dim, grid, size = config.dim, config.grid, config.patch_size
    tokens = (
        F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=size)
        .flatten(2)
        .transpose(1, 2)
    )
    shown = (~mask)[..., None].float()
    tokens = tokens * shown + weights["mask_token"] * (1 - shown)
    tokens = torch.cat([weights["cls_token"].expand(len(tokens), 1, dim), tokens], 1)
    bias = torch.zeros(())
    if config.position == "absolute":
        tokens = tokens + weights["pos_embed"]
    else:
        table, side = weights["rel_pos_bias.relative_position_bias_table"], 2 * grid - 1
        rows = [[side**2 + 2] + [side**2] * grid**2]
        for i in range(grid**2):
            offsets = [
                ((i // grid - j // grid + grid - 1) * side + i % grid - j % grid + grid - 1)
                for j in range(grid**2)
            ]
            rows.append([side**2 + 1, *offsets])
        bias = table[torch.tensor(rows)].permute(2, 0, 1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    for block in (f"blocks.{number}." for number in range(config.depth)):
        normed = norm(tokens, f"{block}norm1")
        q, k, v = (
            torch.einsum("btd,ed->bte", normed, part).unflatten(-1, (config.heads, -1))
            for part in weights[f"{block}attn.qkv.weight"].split(dim)
        )
        q = q + weights[f"{block}attn.q_bias"].unflatten(0, (config.heads, -1))
        v = v + weights[f"{block}attn.v_bias"].unflatten(0, (config.heads, -1))
        shares = (torch.einsum("bshc,bthc->bhst", q, k) / math.sqrt(dim // config.heads) + bias).softmax(-1)
        mixed = torch.einsum("bhst,bthc->bshc", shares, v).flatten(2)
        branch = F.linear(mixed, weights[f"{block}attn.proj.weight"], weights[f"{block}attn.proj.bias"])
        tokens = tokens + weights.get(f"{block}gamma_1", 1) * branch
        middle = F.gelu(
            F.linear(
                norm(tokens, f"{block}norm2"),
                weights[f"{block}mlp.fc1.weight"],
                weights[f"{block}mlp.fc1.bias"],
            )
        )
        branch = F.linear(middle, weights[f"{block}mlp.fc2.weight"], weights[f"{block}mlp.fc2.bias"])
        tokens = tokens + weights.get(f"{block}gamma_2", 1) * branch
    return F.linear(norm(tokens, "norm")[:, 1:], weights["lm_head.weight"], weights["lm_head.bias"])[mask]


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name in theirs:
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(
            ours[name],
            theirs[name],
            rtol=1e-4,
            atol=2e-5 * scale + 1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def stirred(model: Beit) -> Beit:
    """The model with other weights than its initial ones, of which all bias tables and biases are 0."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 92_089_856),
        ({"position": "relative", "layer_scale": 0.1}, 91_965_776),
        ({"dim": 1024, "depth": 24, "heads": 16}, 311_674_880),
        ({"dim": 1024, "depth": 24, "heads": 16, "position": "relative", "layer_scale": 1e-5}, 311_534_016),
    ],
    ids=["base, paper", "base, released", "large, paper", "large, released"],
)
def test_models_have_as_many_parameters_as_the_authors(options, parameters):
    with torch.device("meta"):
        model = Beit(ModelConfig(**options), 8192)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_tensors_have_the_names_of_the_published_checkpoints():
    norms = {f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    layers = {
        f"{layer}.{kind}" for layer in ("attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    }
    block = {"attn.qkv.weight", "attn.q_bias", "attn.v_bias"} | norms | layers
    shared = {
        "cls_token",
        "mask_token",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    shared |= {"lm_head.weight", "lm_head.bias"} | {
        f"blocks.{number}.{name}" for number in range(3) for name in block
    }
    gains = {f"blocks.{number}.gamma_{branch}" for number in range(3) for branch in (1, 2)}
    assert set(Beit(PAPER, 8).state_dict()) == shared | {"pos_embed"}
    assert set(Beit(RELEASED, 8).state_dict()) == shared | gains | {
        "rel_pos_bias.relative_position_bias_table"
    }


@VARIANTS
def test_logits_and_gradients_are_those_of_the_plain_full_computation(config):
    model = stirred(Beit(config, VOCABULARY))
    batch = batch_of([6, 3, 5], config)
    pixels, weight = (
        torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        torch.linspace(-1, 1, VOCABULARY),
    )
    found = []
    for logits in (
        model(pixels, batch["mask"]),
        plain_logits(dict(model.named_parameters()), config, pixels, batch["mask"]),
    ):
        model.zero_grad()
        (logits.softmax(-1) @ weight).square().sum().backward()
        found.append((logits.detach(), gradients(model)))
    (ours, our_gradients), (plain, plain_gradients) = found
    assert ours.shape == (14, VOCABULARY)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert_same(our_gradients, plain_gradients)


@VARIANTS
def test_the_loss_is_the_summed_cross_entropy_of_hidden_positions_however_many_slots_are_padded(config):
    batch = batch_of([6, 3, 0, 5], config)
    found = []
    for max_hidden in (None, 6, 16):
        mim = objective(config, max_hidden=max_hidden)
        sums = mim(batch)
        sums["loss"].backward()
        found.append((sums["loss"].detach(), gradients(mim.model)))
    pixels = normalise(batch["patch_view"], ViewConfig())
    targets = batch["tokens"][batch["mask"]].long()
    logits = plain_logits(dict(mim.model.named_parameters()), config, pixels, batch["mask"])
    expected = F.cross_entropy(logits, targets, reduction="sum")
    assert int(sums["correct"]) == int((logits.argmax(-1) == targets).sum())
    assert torch.equal(sums["counts"], torch.bincount(targets, minlength=VOCABULARY))
    for loss, grads in found:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-4)
        assert_same(grads, found[0][1])


@VARIANTS
def test_a_fresh_model_knows_nothing(config):
    batch = batch_of([6] * 8, config)
    loss = float(objective(config)(batch)["loss"].detach()) / 48
    assert loss == pytest.approx(math.log(VOCABULARY), abs=0.05)


def test_pixels_of_hidden_patches_do_not_reach_the_logits():
    model, batch = stirred(Beit(PAPER, VOCABULARY)), batch_of([6, 3])
    pixels = normalise(batch["patch_view"], ViewConfig())
    covered = batch["mask"].reshape(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    before = model(pixels, batch["mask"])
    assert torch.equal(before, model(torch.where(covered, 7.0, pixels), batch["mask"]))
    assert not torch.allclose(before, model(torch.where(covered, pixels, 7.0), batch["mask"]), atol=1e-3)


def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole():
    config = ModelConfig(image_size=64, dim=48, depth=3, heads=3, drop_path=0.4)
    batch, found = batch_of([6, 3, 0, 5, 1], config), []
    for cuts in ([0, 5], [0, 2, 5]):
        mim = objective(config)
        mim.start_step(7)
        for start, end in pairwise(cuts):
            (mim({name: column[start:end] for name, column in batch.items()})["loss"] / 15).backward()
        found.append(gradients(mim.model))
    assert_same(found[1], found[0])


def test_branches_skipped_depend_on_the_step_and_nothing_before_it():
    mim = objective(ModelConfig(image_size=64, dim=48, depth=3, heads=3, drop_path=0.5))
    batch, losses = batch_of([6, 3, 5, 4]), []
    for step in (3, 4, 3):
        mim.start_step(step)
        losses.append(float(mim(batch)["loss"].detach()))
    assert losses[0] == losses[2] != losses[1]


def test_a_batch_with_nothing_hidden_gives_no_loss_and_no_gradient():
    for max_hidden in (None, 6):
        mim, batch = objective(RELEASED, max_hidden=max_hidden), batch_of([0, 0], RELEASED)
        sums = mim(batch)
        sums["loss"].backward()
        assert float(sums["loss"].detach()) == 0
        assert not any(gradient.any() for gradient in gradients(mim).values()), (
            "every gradient exists and is 0"
        )
        assert mim.weight({name: column.numpy() for name, column in batch.items()}) == 0


def test_the_weight_counts_hidden_patches_and_refuses_more_than_the_slots():
    batch = {name: column.numpy() for name, column in batch_of([6, 3, 0]).items()}
    assert objective(max_hidden=6).weight(batch) == 9
    with pytest.raises(ValueError, match="max_hidden=5"):
        objective(max_hidden=5).weight(batch)


def test_the_loss_is_summed_in_float32_under_bfloat16():
    mim, batch = objective(RELEASED), batch_of([6, 3, 5, 4], RELEASED)
    exact = float(mim(batch)["loss"].detach())
    with torch.autocast("cpu", torch.bfloat16):
        sums = mim(batch)
    assert sums["loss"].dtype == torch.float32
    assert float(sums["loss"].detach()) == pytest.approx(exact, rel=5e-3)


def test_pixels_are_normalised_as_numpy_would():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    view = ViewConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = ((images / 255.0 - view.mean) / view.std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalise(torch.from_numpy(images), view).numpy(), expected, atol=1e-6)


def test_metrics_compare_with_the_commonest_token_and_the_entropy_of_the_whole_run(tmp_path):
    mim = objective()
    counts = np.zeros((2, VOCABULARY), np.int64)
    counts[0, [3, 8]], counts[1, [8, 9]] = (10, 30), (10, 50)
    mim.metrics(
        {"loss": np.float32(80), "correct": np.int64(4), "counts": counts[0], "hidden": 40, "patches": 80},
        40.0,
    )
    mim.save(tmp_path)
    resumed = objective()
    resumed.load(tmp_path)
    for run in (mim, resumed):
        found = run.metrics(
            {
                "loss": np.float32(90),
                "correct": np.int64(6),
                "counts": counts[1],
                "hidden": 60,
                "patches": 240,
            },
            60.0,
        )
        entropy = -sum(share * math.log(share) for share in (0.1, 0.4, 0.5))
        expected = {
            "loss": 1.5,
            "accuracy": 0.1,
            "unigram": entropy,
            "majority": 0.5,
            "perplexity": math.exp(entropy),
            "hidden": 0.25,
        }
        assert found == pytest.approx(expected)


def test_it_learns_to_name_the_colour_of_an_image_from_its_visible_patches():
    mim = objective(ModelConfig(image_size=64, dim=48, depth=2, heads=3, drop_path=0.1))
    optimizer, rng = torch.optim.AdamW(mim.parameters(), lr=3e-3), np.random.default_rng(0)
    for step in range(60):
        batch, colours = batch_of([6] * 16, seed=step), rng.integers(0, 4, 16)
        batch["patch_view"] = torch.from_numpy(PALETTE[colours])[:, None, None].expand(-1, 64, 64, 3)
        batch["tokens"] = torch.from_numpy(colours.astype(np.int16))[:, None].expand(-1, 16)
        mim.start_step(step)
        loss = mim(batch)["loss"] / 96
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2, "four colours at random would give 1.39"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@VARIANTS
def test_a_gpu_computes_what_the_cpu_does(config):
    batch, found = batch_of([6, 3, 5], config), []
    for device in ("cpu", "cuda"):
        mim = objective(config, max_hidden=6)
        stirred(mim.model)
        mim.to(device)
        loss = mim({name: column.to(device) for name, column in batch.items()})["loss"]
        loss.backward()
        found.append(
            (loss.detach().cpu(), {name: gradient.cpu() for name, gradient in gradients(mim).items()})
        )
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-3)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(
            found[1][1][name], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max())
        )


def test_an_evaluation_takes_masks_of_any_size_and_leaves_what_training_gathers_alone():
    mim = objective(max_hidden=3)
    trained = mim(batch_of([3, 2], seed=1))
    mim.metrics({name: value.detach().numpy() for name, value in trained.items()}, 5)
    before = mim.target.state()
    batch = batch_of([12, 5], seed=2)
    mim.eval()
    with torch.inference_mode():
        sums = {name: value.numpy() for name, value in mim(batch).items()}
    weight = mim.weight({name: column.numpy() for name, column in batch.items()})
    assert weight == 17
    figures = mim.unseen_metrics(sums, weight)
    assert mim.target.state() == before
    counts = np.bincount(batch["tokens"][batch["mask"]].numpy())
    assert figures["majority"] == pytest.approx(counts.max() / 17)
    with torch.inference_mode():
        logits = mim.model(normalise(batch["patch_view"], mim.view), batch["mask"])
    expected = F.cross_entropy(logits, batch["tokens"][batch["mask"]].long())
    assert figures["loss"] == pytest.approx(float(expected), abs=1e-5)
