import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from beit.config import MaskConfig, ModelConfig, OptimConfig, ViewConfig
from beit.pretraining.masking import draw_mask
from beit.pretraining.objective import MimObjective
from beit.pretraining.targets import VisualTokens
from pipelines.training.step import Stepper, share_of

MODEL = ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2, drop_path=0.0)
MASK = MaskConfig(ratio=0.5)


def make_objective():
    optim = OptimConfig(global_batch_size=12, peak_lr=1e-2, warmup_steps=0)
    return MimObjective(
        MODEL,
        optim,
        ViewConfig(),
        target=VisualTokens(16),
        total_steps=8,
        seed=0,
        max_hidden=MASK.budget(MODEL.grid),
    )


def global_batch(step):
    """12 images whose masks hide very different numbers of patches, one of them none."""
    rng = np.random.default_rng(step)
    mask = np.stack([draw_mask(rng, MASK, MODEL.grid).reshape(-1) for _ in range(12)])
    mask[0] = False
    mask[:6, 5:] = False
    return {
        "patch_view": torch.from_numpy(rng.integers(0, 256, (12, 32, 32, 3), np.uint8)),
        "tokens": torch.from_numpy(rng.integers(0, 16, (12, 16)).astype(np.int16)),
        "mask": torch.from_numpy(mask),
    }


def train(*, micro, steps=3):
    torch.set_num_threads(1)
    stepper = Stepper(make_objective(), device=torch.device("cpu"), micro_batch_size=micro, clip_norm=0.5)
    for step in range(steps):
        ends = np.cumsum([0, *(share_of(12, rank, stepper.workers) for rank in range(stepper.workers))])
        batch = {
            name: column[ends[stepper.rank] : ends[stepper.rank + 1]]
            for name, column in global_batch(step).items()
        }
        weight = stepper.add_up([stepper.objective.weight({"mask": batch["mask"].numpy()})])[0]
        stepper.step(step, batch, weight)
    taken = stepper.take_sums()
    weights = {name: p.detach() for name, p in stepper.objective.named_parameters()}
    return weights, taken.sums, taken.weight, taken.norm


def worker(rank, workers, micro, rendezvous, out):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    torch.save(train(micro=micro), f"{out}-{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize(("workers", "micro"), [(2, 6), (2, 4), (3, 1), (5, 1)])
def test_workers_and_micro_batches_give_the_weights_of_one_worker_with_the_whole_batch(
    workers, micro, tmp_path
):
    weights, sums, weight, norm = train(micro=None)
    # Forked, because a fresh interpreter could not import this file.
    mp.start_processes(
        worker,
        (workers, micro, tmp_path / "rendezvous", tmp_path / "out"),
        nprocs=workers,
        start_method="fork",
    )
    for rank in range(workers):
        other, other_sums, other_weight, other_norm = torch.load(tmp_path / f"out-{rank}", weights_only=False)
        assert other_weight == weight
        assert other_norm == pytest.approx(norm, rel=1e-5)
        for name in sums:
            np.testing.assert_allclose(other_sums[name], sums[name], rtol=1e-5)
        for name, value in weights.items():
            # AdamW divides by the gradient's own size: rounding shows where a gradient is near zero.
            torch.testing.assert_close(
                other[name], value, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("workers", range(1, 13))
def test_shares_are_the_whole_batch_and_differ_by_one_image_at_most(workers):
    shares = [share_of(12, rank, workers) for rank in range(workers)]
    assert sum(shares) == 12
    assert max(shares) - min(shares) <= 1
    assert shares[0] == max(shares)


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted():
    """Weights, optimizer and sums afterwards are those of the steps around it alone."""
    clean, broken = (Stepper(make_objective(), device=torch.device("cpu"), clip_norm=1.0) for _ in range(2))
    batches = [global_batch(number) for number in range(4)]
    for step in (0, 3):
        clean.step(step, batches[step], 1.0)
    bias = broken.objective.model.lm_head.bias
    for step in range(4):
        with torch.no_grad():
            kept = bias[0].clone()
            bias[0] = math.inf if step in (1, 2) else kept
        broken.step(step, batches[step], 1.0)
        with torch.no_grad():
            bias[0] = kept if step in (1, 2) else bias[0]
        if step == 2:
            taken = broken.take_sums()
            assert (taken.skipped, taken.skipped_in_row, taken.weight) == (2, 2, 1.0)
            assert math.isfinite(taken.sums["loss"])
    for name, value in clean.objective.state_dict().items():
        assert torch.equal(broken.objective.state_dict()[name], value), name
    for one, other in zip(
        clean.optimizer.state_dict()["state"].values(),
        broken.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    taken = broken.take_sums()
    assert (taken.skipped, taken.skipped_in_row, taken.weight) == (0, 0, 1.0)


def test_a_batch_without_anything_hidden_changes_no_weight_but_by_decay():
    objective = make_objective()
    stepper = Stepper(objective, device=torch.device("cpu"))
    batch = global_batch(0)
    batch["mask"] = torch.zeros_like(batch["mask"])
    before = objective.model.lm_head.bias.detach().clone()
    stepper.step(0, batch, 0.0)
    assert stepper.take_sums().skipped == 0
    assert torch.equal(objective.model.lm_head.bias, before)
