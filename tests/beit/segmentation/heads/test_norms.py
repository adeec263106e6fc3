"""BatchNorms of two workers with half a batch each against one of torch's with the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beit.segmentation.heads.layers import ConvNorm
from beit.segmentation.heads.norms import HostSyncNorm, synchronised

BATCH = torch.randn(5, 3, 6, 4, generator=torch.Generator().manual_seed(0)) + 2


def model():
    built = nn.Sequential(ConvNorm(3, 4, 3), nn.AdaptiveAvgPool2d(1), ConvNorm(4, 6, 1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(generator=generator)
    return built


def step(built, images):
    """Gradients of a sum over images, and everything the model then holds."""
    out = built.train()(images)
    (out * torch.arange(6.0)[:, None, None]).square().sum().backward()
    return [parameter.grad for parameter in built.parameters()], built.state_dict(), out.detach()


def worker(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    built = synchronised(model())
    assert sum(isinstance(module, HostSyncNorm) for module in built.modules()) == 2
    # Of the second worker's part the pooled maps are one value a channel: it could have no statistics of its
    # own.
    gradients, _, found = step(
        DistributedDataParallel(built, broadcast_buffers=False), BATCH[:4] if rank == 0 else BATCH[4:]
    )
    torch.save(([2 * gradient for gradient in gradients], built.state_dict(), found), f"{out}-{rank}")
    dist.destroy_process_group()


def test_two_workers_have_the_statistics_and_the_gradients_of_one_with_the_whole_batch(tmp_path):
    # Forked, because a fresh interpreter could not import this file.
    mp.start_processes(worker, (tmp_path / "rendezvous", tmp_path / "out"), nprocs=2, start_method="fork")
    gradients, state, found = step(model(), BATCH)
    results = [torch.load(tmp_path / f"out-{rank}") for rank in range(2)]
    torch.testing.assert_close(torch.cat([result[2] for result in results]), found, rtol=1e-4, atol=1e-5)
    for theirs, theirs_state, _ in results:
        torch.testing.assert_close(theirs, gradients, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(dict(theirs_state), dict(state), rtol=1e-4, atol=1e-5)


def test_one_worker_keeps_torchs_own():
    built = model()
    assert synchronised(built) is built
    assert not any(isinstance(module, HostSyncNorm) for module in built.modules())
    alone = copy.deepcopy(built)
    with pytest.raises(ValueError, match="more than 1 value"):
        step(alone, BATCH[:1])
