"""The relaxed bound against slow, plain re-computations, and training that can be interrupted."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.checks import check
from beit.config import OptimConfig
from beit.errors import UserError
from beit.tokenizer.config import DvaeConfig, DvaeTrainConfig
from beit.tokenizer.objective import (
    DvaeObjective,
    cosine,
    divergence_from_uniform,
    entropy,
    negative_log_likelihood,
)

SMALL = DvaeConfig(vocab_size=12, encoder_width=8, decoder_width=8, blocks=1, bottleneck=4)
OPTIM = OptimConfig(global_batch_size=4, peak_lr=5e-3, min_lr=5e-5, warmup_steps=5, weight_decay=1e-4)


def objective(train: DvaeTrainConfig | None = None, *, steps: int = 20, seed: int = 0) -> DvaeObjective:
    return DvaeObjective(SMALL, train or DvaeTrainConfig(), OPTIM, total_steps=steps, seed=seed)


def some_batch(count: int = 4, *, bad: tuple[int, ...] = (), seed: int = 0) -> dict[str, Tensor]:
    """Images of 16 x 16 pixels, each 8 x 8 square in one of four colours."""
    rng = np.random.default_rng(seed)
    palette = np.array([[250, 20, 20], [20, 220, 40], [30, 40, 240], [240, 230, 30]], np.uint8)
    images = palette[rng.integers(0, 4, (count, 2, 2))].repeat(8, axis=1).repeat(8, axis=2)
    status = np.zeros(count, np.uint8)
    status[list(bad)] = 3
    images[list(bad)] = 0
    return {"patch_view": torch.from_numpy(images), "status": torch.from_numpy(status)}


def train(model: DvaeObjective, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = model.learning_rate(step) * group["lr_scale"]
        model.start_step(step)
        optimizer.zero_grad(set_to_none=True)
        sums = model(some_batch(seed=step))
        (sums["loss"] / 4).backward()
        optimizer.step()
        model.finish_step(step)
        losses.append(sums["bound"].item() / 4)
    return losses


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-1.0, 0.3)])
def test_density_of_a_pixel_integrates_to_one(location: float, log_scale: float):
    x = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)[1:-1]
    statistics = (
        torch.tensor([location, log_scale], dtype=torch.float64)
        .repeat_interleave(3)
        .view(1, 6, 1, 1)
        .expand(1, 6, 1, len(x))
    )
    density = torch.exp(-negative_log_likelihood(x.expand(1, 3, 1, len(x)), statistics))[0, 0, 0]
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-3)


def test_divergence_is_zero_for_uniform_and_all_nats_for_certain_tokens():
    certain = torch.full((1, 7, 1, 1), -200.0).index_fill(1, torch.tensor([2]), 0.0)
    assert divergence_from_uniform(certain).item() == pytest.approx(math.log(7))
    assert divergence_from_uniform(torch.zeros(1, 7, 1, 1).log_softmax(1)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_entropy_of_tokens_nobody_considers_has_a_finite_slope():
    logits = torch.tensor([0.0, 0.0, -400.0], requires_grad=True)
    value = entropy(logits.softmax(0))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits.grad).all()


def test_loss_equals_a_pixel_by_pixel_computation():
    model, batch = objective(DvaeTrainConfig(marginal_weight=0.3)), some_batch(2)
    model.start_step(7)
    dvae, x = model.dvae, 0.1 + 0.8 * batch["patch_view"].permute(0, 3, 1, 2).double() / 255
    logits = dvae.encoder(x.float())
    gumbel = -torch.empty_like(logits).exponential_(generator=model._noise).log()
    statistics = dvae.decoder(((logits + gumbel) / model.temperature).softmax(1)).double()
    pixels = 0.0
    for image in range(2):
        for c in range(3):
            for row in range(16):
                for column in range(16):
                    value, mu = x[image, c, row, column].item(), statistics[image, c, row, column].item()
                    b = math.exp(statistics[image, c + 3, row, column].item())
                    distance = abs(math.log(value / (1 - value)) - mu)
                    pixels -= math.log(1 / (2 * b * value * (1 - value)) * math.exp(-distance / b))
    q = logits.softmax(1).double()
    divergence = sum(
        (q[i, k, y, z] * torch.log(12 * q[i, k, y, z])).item()
        for i in range(2)
        for k in range(12)
        for y in (0, 1)
        for z in (0, 1)
    )
    mean_q = [
        np.mean([q[i, k, y, z].item() for i in range(2) for y in (0, 1) for z in (0, 1)]) for k in range(12)
    ]
    bound = (pixels + model.kl_weight * divergence) / (16 * 16 * 3)
    marginal = -sum(p * math.log(p) for p in mean_q)

    model.start_step(7)
    sums = model(batch)
    assert model.kl_weight > 0
    assert sums["bound"].item() == pytest.approx(bound, rel=1e-4)
    assert sums["kl"].item() / 2 == pytest.approx(divergence / 8, rel=1e-4)
    assert sums["marginal"].item() / 2 == pytest.approx(marginal, rel=1e-4)
    assert sums["loss"].item() == pytest.approx(bound - 0.3 * 2 * marginal, rel=1e-4)


def test_undecodable_images_add_nothing_to_loss_and_gradient():
    found = []
    for batch in (
        some_batch(4, bad=(2, 3)),
        {name: column[:2] for name, column in some_batch(4, bad=(2, 3)).items()},
    ):
        model = objective(DvaeTrainConfig(first_temperature=1.0, marginal_weight=0.5))
        # The same noise for the first two images, whatever follows them.
        noise = torch.rand(4, 12, 2, 2, generator=torch.Generator().manual_seed(0))[: len(batch["status"])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "exponential_", lambda self, generator, noise=noise: self.copy_(noise))
            sums = model(batch)
        sums["loss"].backward()
        found.append(
            (
                model.weight({name: column.numpy() for name, column in batch.items()}),
                sums,
                model.dvae.encoder.blocks.input.w.grad,
            )
        )
    (weight, sums, gradient), (expected_weight, expected_sums, expected_gradient) = found
    assert weight == expected_weight == 2
    for name, value in sums.items():
        torch.testing.assert_close(value, expected_sums[name], msg=name)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_batch_without_a_decoded_image_has_a_finite_gradient_of_zero():
    model = objective()
    sums = model(some_batch(2, bad=(0, 1)))
    sums["loss"].backward()
    assert sums["loss"].item() == 0
    assert all(not parameter.grad.any() for parameter in model.dvae.parameters())


def test_noise_at_its_limit_leaves_the_loss_finite(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tensor, "exponential_", lambda self, generator: self.zero_())
    model = objective()
    model.start_step(19)
    assert torch.isfinite(model(some_batch())["loss"])


def test_schedules_start_and_end_where_they_say():
    train_config = DvaeTrainConfig(
        kl_weight=5.0, kl_share=0.1, first_temperature=2.0, last_temperature=0.25, temperature_share=0.5
    )
    model = objective(train_config, steps=1000)
    seen = {}
    for step in (0, 50, 100, 250, 500, 999):
        model.start_step(step)
        seen[step] = (model.temperature, model.kl_weight)
    assert seen[0] == pytest.approx((2.0, 0.0))
    assert seen[50][1] == pytest.approx(2.5)
    assert seen[100][1] == seen[999][1] == 5.0
    assert seen[250][0] == pytest.approx((2.0 + 0.25) / 2)
    assert seen[500][0] == seen[999][0] == 0.25
    rates = [model.learning_rate(step) for step in range(1000)]
    assert rates[:6] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 5e-3])
    assert rates[999] == pytest.approx(5e-5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert cosine(3, 0, 1.0, 2.0) == 2.0


def test_noise_depends_on_seed_and_step_alone():
    def loss(seed: int, *steps: int) -> float:
        model = objective(seed=0)
        model.seed = seed
        for step in steps:
            model.start_step(step)
        return model(some_batch())["bound"].item()

    # The temperature falls too little between these steps to tell them apart; the noise does.
    assert loss(0, 1) == loss(0, 5, 1)
    assert loss(0, 1) != loss(1, 1)
    assert abs(loss(0, 1) - loss(0, 2)) > 1e-4


def test_metrics_count_tokens_over_all_steps_since_the_last_report():
    model = objective()
    counts = np.zeros(12)
    counts[[0, 3, 5, 7]] = [10, 10, 10, 10]
    sums = {name: np.array(6.0) for name in ("loss", "bound", "kl", "error", "marginal")} | {"tokens": counts}
    metrics = model.metrics(sums, 3.0)
    assert metrics["perplexity"] == pytest.approx(4)
    assert metrics["dead"] == 8
    assert metrics["error"] == pytest.approx(2)
    assert set(model.metrics({**sums}, 0.0)) == set(metrics)


def test_token_counts_are_of_the_largest_logits():
    model, batch = objective(), some_batch(4, bad=(1,))
    tokens = model.dvae.encoder(0.1 + 0.8 * batch["patch_view"].permute(0, 3, 1, 2).float() / 255).argmax(1)[
        [0, 2, 3]
    ]
    assert torch.equal(model(batch)["tokens"], torch.bincount(tokens.flatten(), minlength=12).double())


def test_training_resumes_bit_for_bit(tmp_path: Path):
    config = DvaeTrainConfig(ema_decay=0.9)
    whole, first, second = (objective(config) for _ in range(3))
    train(whole, whole.optimizer(), range(6))
    optimizer = first.optimizer()
    train(first, optimizer, range(3))
    first.save(tmp_path)
    second.load(tmp_path)
    resumed = second.optimizer()
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.dvae.parameters(), second.dvae.parameters(), strict=True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.trained.parameters(), second.trained.parameters(), strict=True)
    )
    assert second.trained is not second.dvae


def test_running_mean_follows_the_weights_without_being_trained():
    model = objective(DvaeTrainConfig(ema_decay=0.5))
    trained = {id(p) for group in model.optimizer().param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.dvae.parameters()}
    before = model.trained.encoder.blocks.input.w.clone()
    with torch.no_grad():
        model.dvae.encoder.blocks.input.w += 1
    model.finish_step(1000)
    torch.testing.assert_close(model.trained.encoder.blocks.input.w, before + 0.5)


def test_tokens_of_a_toy_problem_tell_its_four_colours():
    optim = dataclasses.replace(OPTIM, peak_lr=2e-2)
    model = DvaeObjective(SMALL, DvaeTrainConfig(), optim, total_steps=150, seed=0)
    losses = train(model, model.optimizer(), range(150))
    assert losses[-1] < losses[0] - 1
    batch = some_batch(32, seed=999)
    tokens = model.dvae.encoder(0.1 + 0.8 * batch["patch_view"].permute(0, 3, 1, 2).float() / 255).argmax(1)
    colours = (batch["patch_view"][:, 4::8, 4::8].long() @ torch.tensor([1, 256, 65536])).unique(
        return_inverse=True
    )[1]
    counts = torch.zeros(12, 4).index_put(
        (tokens.flatten(), colours.flatten()), torch.tensor(1.0), accumulate=True
    )
    told = (counts.amax(1).sum() / counts.sum()).item()
    assert told > 0.6, (
        f"a token's commonest colour is right for {told:.0%} of the squares; one token for all would give 25%"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kl_weight", -1.0),
        ("kl_share", 0.0),
        ("temperature_share", 1.5),
        ("last_temperature", 2.0),
        ("encoder_lr", 0.0),
        ("ema_decay", 1.0),
    ],
)
def test_schedules_that_make_no_sense_are_refused_by_name(field: str, value: float):
    with pytest.raises(UserError, match=f"train.{field}={value} "):
        check(DvaeTrainConfig(**{field: value}), "train.")
