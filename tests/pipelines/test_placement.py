import pytest

from beit.errors import UserError
from pipelines.config import ResourceConfig
from pipelines.placement import Node, place

LAPTOP = [Node(cpus=2, gpus=0)]


def cpus(placement):
    return placement.workers * placement.worker_cpus + placement.tokenizers[0] * placement.tokenizer_cpus + placement.view_cpus


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("tokenize", [True, False])
def test_defaults_fit_every_machine_with_room_for_reading(cores, workers, tokenize):
    placement = place(ResourceConfig(workers=workers), [Node(cpus=cores, gpus=0)], tokenize=tokenize)
    assert cpus(placement) <= cores
    assert placement.device == "cpu"


def test_what_does_not_fit_is_refused_with_the_arithmetic():
    with pytest.raises(UserError) as error:
        place(ResourceConfig(workers=2, worker_cpus=1), LAPTOP, tokenize=True)
    assert "2 workers x 1 CPU + 1 tokenizer x 0.29" in error.value.cause
    assert "Ray has 2" in error.value.cause


def test_a_worker_must_fit_on_one_machine():
    nodes = [Node(cpus=8, gpus=0)] * 4
    with pytest.raises(UserError, match=r"room for 0, not for resources.workers=1"):
        place(ResourceConfig(worker_cpus=16), nodes, tokenize=False)


def test_tokenizers_take_the_gpus_that_the_workers_leave():
    placement = place(ResourceConfig(workers=6), [Node(cpus=96, gpus=8)], tokenize=True)
    assert (placement.worker_gpus, placement.tokenizer_gpus, placement.tokenizers) == (1.0, 1.0, (1, 2))


def test_without_a_spare_gpu_tokenizers_share_the_workers():
    placement = place(ResourceConfig(workers=8), [Node(cpus=96, gpus=8)], tokenize=True)
    assert (placement.worker_gpus, placement.tokenizer_gpus) == (0.75, 0.25)
    assert place(ResourceConfig(workers=8), [Node(cpus=96, gpus=8)], tokenize=False).worker_gpus == 1.0


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(UserError, match="Ray has 4"):
        place(ResourceConfig(workers=8), [Node(cpus=96, gpus=4)], tokenize=True)
    with pytest.raises(UserError, match="no GPU"):
        place(ResourceConfig(device="cuda"), LAPTOP, tokenize=True)
