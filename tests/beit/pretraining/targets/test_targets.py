"""What is predicted for a patch, its loss, and the baselines of the loss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from beit.config import MaskConfig, ModelConfig, OptimConfig, TargetConfig, ViewConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.pretraining.objective import MimObjective
from beit.pretraining.targets import MeanColour, Pixels, VisualTokens

MODEL = ModelConfig(image_size=32, patch_size=8, dim=48, depth=2, heads=3, drop_path=0.0)
VIEW = ViewConfig()
VOCABULARY = 20
TARGETS = {
    "tokens": lambda: VisualTokens(VOCABULARY),
    "pixels": lambda: Pixels(8, VIEW),
    "colour": lambda: MeanColour(8),
}
EVERY = pytest.mark.parametrize("kind", TARGETS)


def objective(kind: str, **options) -> MimObjective:
    return MimObjective(
        MODEL, OptimConfig(), VIEW, target=TARGETS[kind](), total_steps=100, seed=0, **options
    )


def batch_of(hidden: list[int], seed: int = 0, broken: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Random images with these numbers of hidden patches; the broken ones have a status that says so."""
    rng = np.random.default_rng(seed)
    mask, status = np.zeros((len(hidden), 16), bool), np.zeros(len(hidden), np.uint8)
    status[list(broken)] = 3
    for image, count in enumerate(hidden):
        mask[image, rng.permutation(16)[:count]] = True
    columns = {
        "patch_view": rng.integers(0, 256, (len(hidden), 32, 32, 3), np.uint8),
        "tokens": rng.integers(0, VOCABULARY, (len(hidden), 16)).astype(np.int16),
        "mask": mask,
        "status": status,
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def plain_patches(images: torch.Tensor) -> np.ndarray:
    """uint8 [B, 32, 32, 3] -> the 16 patches of each, [B, 16, 8, 8, 3], cut out one by one."""
    cut = [
        [image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] for row in range(4) for column in range(4)]
        for image in images.numpy()
    ]
    return np.array(cut)


def plain_loss(
    kind: str, outputs: torch.Tensor, batch: dict[str, torch.Tensor], where: torch.Tensor
) -> torch.Tensor:
    """The loss at `where` [B, N], written down from its definition."""
    patches = plain_patches(batch["patch_view"])
    if kind == "pixels":
        normal = (patches / 255 - np.array(VIEW.mean)) / np.array(VIEW.std)
        truth = torch.from_numpy(normal.transpose(0, 1, 4, 2, 3).reshape(len(normal), 16, -1)).float()
        return ((outputs - truth) ** 2)[where].mean(1).sum()
    if kind == "colour":
        level = (patches.astype(float).mean((2, 3)) / 32).astype(int)
        truth = torch.from_numpy(64 * level[..., 0] + 8 * level[..., 1] + level[..., 2])
    else:
        truth = batch["tokens"].long()
    return F.cross_entropy(outputs[where], truth[where], reduction="sum")


@EVERY
@pytest.mark.parametrize("asked", ["hidden", "all"])
def test_the_loss_is_the_plain_one_summed_over_the_patches_asked_for(kind, asked):
    mim, batch = objective(kind, asked=asked, max_hidden=7), batch_of([6, 3, 0, 5], broken=(2,))
    where = batch["mask"] if asked == "hidden" else (batch["status"] == 0)[:, None].expand(4, 16)
    everywhere = torch.arange(16).expand(4, 16)
    outputs = mim.model.predict(normalise(batch["patch_view"], VIEW), batch["mask"], everywhere)
    sums = mim({name: batch[name] for name in mim.columns})
    torch.testing.assert_close(sums["loss"], plain_loss(kind, outputs, batch, where), rtol=1e-5, atol=1e-4)
    assert mim.weight({name: column.numpy() for name, column in batch.items()}) == int(where.sum())
    assert int(sums["hidden"]) == 14
    assert int(sums["patches"]) == 48


@EVERY
def test_a_gradient_comes_from_the_patches_asked_for_only(kind):
    target = TARGETS[kind]()
    outputs = torch.randn(
        3, 16, target.outputs, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    batch = batch_of([6, 3, 0])
    truth = target.truth(batch, normalise(batch["patch_view"], VIEW), torch.arange(16).expand(3, 16))
    target.sums(outputs, truth, batch["mask"])["loss"].backward()
    assert torch.equal(outputs.grad.abs().sum(-1) > 0, batch["mask"])


@EVERY
def test_with_nothing_hidden_all_patches_are_asked_for_and_every_parameter_has_a_gradient(kind):
    mim = objective(kind, asked="all", max_hidden=0)
    sums = mim(batch_of([0, 0]))
    sums["loss"].backward()
    assert int(sums["patches"]) == 32
    assert all(parameter.grad is not None for parameter in mim.parameters())
    assert mim.metrics({name: value.detach().numpy() for name, value in sums.items()}, 32.0)["hidden"] == 0


def test_a_loss_over_nothing_is_refused():
    TargetConfig(positions="all").check(MaskConfig(ratio=0))
    with pytest.raises(UserError, match=r"mask\.ratio=0 hides no patch, and target\.positions=hidden"):
        TargetConfig().check(MaskConfig(ratio=0))


@pytest.mark.parametrize(
    ("colour", "number"),
    [((0, 0, 0), 0), ((255, 255, 255), 511), ((31, 32, 255), 8 + 7), ((200, 100, 50), 6 * 64 + 3 * 8 + 1)],
)
def test_mean_colours_are_classes_of_three_bits_a_channel(colour, number):
    images = torch.tensor(colour, dtype=torch.uint8).expand(1, 8, 8, 3)
    target = MeanColour(8)
    found = target.truth({"patch_view": images}, torch.empty(0), torch.zeros(1, 1, dtype=torch.long))
    assert found.tolist() == [[number]]
    painted = target.paint(found)
    assert painted.shape == (1, 8, 8, 3)
    assert (painted.int() - images.int()).abs().max() <= 16, "the middle of its range"


def test_the_class_is_that_of_the_mean_not_of_a_pixel():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[:, :4] = 255
    found = MeanColour(8).truth({"patch_view": image}, torch.empty(0), torch.zeros(1, 1, dtype=torch.long))
    assert found.item() == 3 * 64 + 3 * 8 + 3, "127.5 of 256 is below the middle"


def test_pixels_painted_from_the_truth_are_the_image():
    images = batch_of([0, 0])["patch_view"]
    target = Pixels(8, VIEW)
    truth = target.truth({"patch_view": images}, normalise(images, VIEW), torch.arange(16).expand(2, 16))
    assert torch.equal(target.paint(truth), images)


def test_squared_errors_are_compared_with_always_saying_the_mean_colour(tmp_path):
    mim = objective("pixels")
    batches = [batch_of([6, 3, 0, 5], seed) for seed in (1, 2)]
    seen: list[np.ndarray] = []
    for number, batch in enumerate(batches):
        seen.append(
            ((plain_patches(batch["patch_view"])[batch["mask"].numpy()] / 255) - VIEW.mean) / VIEW.std
        )
        sums = {name: value.detach().numpy() for name, value in mim(batch).items()}
        if number == 1:
            mim.save(tmp_path)
            mim = objective("pixels")
            mim.load(tmp_path)
        found = mim.metrics(sums, 14.0)
    values = np.concatenate(seen).reshape(-1, 3)
    variance = ((values - values.mean(0)) ** 2).mean()
    loss = float(sums["loss"]) / 14
    assert found == pytest.approx(
        {"loss": loss, "variance": variance, "explained": 1 - loss / variance, "hidden": 14 / 48}, rel=1e-4
    )


def test_colours_are_compared_with_the_commonest_and_their_entropy():
    mim, counts = objective("colour"), np.zeros(512, np.int64)
    counts[[3, 500]] = 10, 30
    found = mim.metrics(
        {"loss": np.float32(80), "correct": np.int64(4), "counts": counts, "hidden": 40, "patches": 160}, 40.0
    )
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = {
        "loss": 2,
        "accuracy": 0.1,
        "unigram": entropy,
        "majority": 0.75,
        "perplexity": math.exp(entropy),
        "hidden": 0.25,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "below"), [("pixels", 0.15), ("colour", 0.2)])
def test_it_learns_the_colour_of_an_image_from_its_visible_patches(kind, below):
    palette = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 30]], np.uint8)
    mim = objective(kind)
    optimizer, rng = torch.optim.AdamW(mim.parameters(), lr=3e-3), np.random.default_rng(0)
    for step in range(80):
        batch = batch_of([6] * 16, seed=step)
        batch["patch_view"] = torch.from_numpy(palette[rng.integers(0, 4, 16)])[:, None, None].expand(
            -1, 32, 32, 3
        )
        sums = mim(batch)
        optimizer.zero_grad()
        (sums["loss"] / 96).backward()
        optimizer.step()
        found = mim.metrics({name: value.detach().numpy() for name, value in sums.items()}, 96.0)
    baseline = found["variance"] if kind == "pixels" else found["unigram"]
    assert found["loss"] < below * baseline, f"{found['loss']:.3f} against {baseline:.3f} for always the same"
