"""Properties of every placement, over laptops, GPU machines and clusters."""

import itertools
import re
from dataclasses import replace

import pytest

from beit.checks import check
from beit.errors import UserError
from pipelines.cluster.placement import Node, place
from pipelines.config.resources import ResourceConfig

CPU_CLUSTERS = {
    **{f"laptop of {cores}": [Node(cpus=cores, gpus=0)] for cores in (1, 2, 4, 8, 64)},
    "4 x 2 cores": [Node(cpus=2, gpus=0)] * 4,
    "4 x 16 cores": [Node(cpus=16, gpus=0)] * 4,
    "12 x 1 core": [Node(cpus=1, gpus=0)] * 12,
    "an idle head and 2 x 8 cores": [Node(cpus=0, gpus=0), *[Node(cpus=8, gpus=0)] * 2],
}
GPU_CLUSTERS = {
    "4 cores, 1 GPU": [Node(cpus=4, gpus=1)],
    "8 cores, 8 GPUs": [Node(cpus=8, gpus=8)],
    "96 cores, 8 GPUs": [Node(cpus=96, gpus=8)],
    "2 x 8 GPUs": [Node(cpus=96, gpus=8)] * 2,
    "an idle head and 2 x 4 GPUs": [Node(cpus=0, gpus=0), *[Node(cpus=48, gpus=4)] * 2],
    "a head of cores and 4 x 1 core, 1 GPU": [Node(cpus=64, gpus=0), *[Node(cpus=1, gpus=1)] * 4],
}
HEAD = Node(cpus=0, gpus=0)
TYPED_CLUSTERS = {
    "a head, and by autoscaling CPU, L4 and A100 machines": [
        HEAD,
        *[Node(cpus=16, gpus=0, there=False)] * 16,
        *[Node(cpus=4, gpus=1, stages=frozenset({"tokens"}), there=False)] * 8,
        *[Node(cpus=96, gpus=8, stages=frozenset({"train"}), there=False)] * 4,
    ],
    "views on cores of their own, all there": [
        Node(cpus=8, gpus=0, stages=frozenset({"views"})),
        Node(cpus=8, gpus=2, stages=frozenset({"train", "tokens"})),
    ],
    "small machines of cores, by autoscaling": [
        HEAD,
        *[Node(cpus=1, gpus=0, there=False)] * 2,
        *[Node(cpus=1, gpus=0, stages=frozenset({"train"}), there=False)] * 2,
    ],
}
CLUSTERS = CPU_CLUSTERS | GPU_CLUSTERS | TYPED_CLUSTERS

AMOUNTS = [None, 0.5, 1, 2, 16]
GRID = {
    "cores": [
        {"worker_cpus": worker, "tokenizer_cpus": tokenizer, "view_cpus": view, "workers": workers}
        for worker, tokenizer, view, workers in itertools.product(
            AMOUNTS, AMOUNTS, AMOUNTS, (None, 1, 2, 4, 7, 16)
        )
    ],
    "GPUs": [
        {"tokenizer_gpus": share, "tokenizers": tokenizers, "workers": workers, "device": device}
        for share, tokenizers, workers, device in itertools.product(
            [None, 0, 0.1, 0.25, 0.4, 0.5, 0.7, 1],
            [None, 1, 3, 8],
            [None, 1, 3, 8, 12, 16],
            ["auto", "cpu", "cuda"],
        )
    ],
}


def schedule(p, nodes):
    """Whether Ray starts everything, if it puts workers on the largest machines first; GPUs and stages one by
    one.
    """
    cpus = [node.cpus for node in nodes]
    gpus = [[1.0] * int(node.gpus) for node in nodes]

    def start(cpu, gpu, order):
        for n in order:
            device = next((i for i, free in enumerate(gpus[n]) if free >= gpu - 1e-6), None)
            if cpus[n] >= cpu - 1e-6 and (device is not None or not gpu):
                cpus[n] -= cpu
                if gpu:
                    gpus[n][device] -= gpu
                return True
        return False

    def hosts(stage):
        """Largest first; only those that have the custom resource which the stage asks for."""
        asked = set(p.tag(stage))
        return [
            n for n in sorted(range(len(nodes)), key=lambda n: -nodes[n].cpus) if asked <= nodes[n].stages
        ]

    if not all(start(p.worker_cpus, p.worker_gpus, hosts("train")) for _ in range(p.workers)):
        return False
    if p.tokenizers[0] and not start(
        p.tokenizer_cpus, p.tokenizer_gpus, sorted(hosts("tokens"), key=lambda n: cpus[n])
    ):
        return False
    return start(p.view_cpus, 0, hosts("views"))


def follow(config, remedy):
    """The config with the options that a remedy spells out, those of the first alternative that has some."""
    spelled = (
        re.findall(r"--resources\.([a-z-]+) ([\w.]+)", alternative) for alternative in remedy.split(", or ")
    )
    typed = next(filter(None, spelled), [])
    values = {
        name: value if value.isalpha() else int(value) if value.isdigit() else float(value)
        for name, value in typed
    }
    return replace(config, **{name.replace("-", "_"): value for name, value in values.items()})


@pytest.mark.parametrize("nodes", CLUSTERS.values(), ids=CLUSTERS.keys())
@pytest.mark.parametrize("options", GRID.values(), ids=GRID.keys())
def test_what_is_accepted_can_be_scheduled_and_every_remedy_leads_there(nodes, options):
    for asked in options:
        config = ResourceConfig(**asked)
        for _ in range(4):
            try:
                placement = place(config, nodes, tokenize=True)
                break
            except UserError as error:
                config, last = follow(config, error.remedy), error
        else:
            pytest.fail(f"{asked}: four remedies in a row do not help, the last is {last}")
        assert schedule(placement, nodes), f"{asked}: {placement}"
        stages = (placement.view_cpus, 0), (placement.tokenizer_cpus, placement.tokenizer_gpus)
        assert stages[0] != stages[1], f"Ray Data would fuse them: {placement}"
        # Ray puts two halves onto one GPU, and NCCL refuses two workers there.
        assert placement.worker_gpus == 0 or 0.5 < placement.worker_gpus <= 1


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize("nodes", CPU_CLUSTERS.values(), ids=CPU_CLUSTERS.keys())
def test_up_to_four_workers_train_on_cpus_without_being_asked(nodes, tokenize):
    for workers in (None, 1, 2, 3, 4):
        placement = place(ResourceConfig(workers=workers), nodes, tokenize=tokenize)
        assert (placement.device, placement.workers) == ("cpu", workers or 1)
        assert schedule(placement, nodes)
        assert placement.worker_cpus <= max(node.cpus for node in nodes) / 2


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize("nodes", GPU_CLUSTERS.values(), ids=GPU_CLUSTERS.keys())
def test_by_default_every_gpu_has_a_worker(nodes, tokenize):
    placement = place(ResourceConfig(), nodes, tokenize=tokenize)
    assert (placement.device, placement.workers) == ("cuda", sum(node.gpus for node in nodes))
    assert placement.worker_gpus == (0.75 if tokenize else 1.0)
    assert schedule(placement, nodes)


def test_many_workers_without_a_gpu_are_refused_unless_cpus_are_asked_for():
    nodes = [Node(cpus=8, gpus=0)]
    with pytest.raises(UserError, match="Ray sees no GPU") as error:
        place(ResourceConfig(workers=16), nodes, tokenize=True)
    assert "--resources.device cpu" in error.value.remedy
    assert place(ResourceConfig(workers=16, device="cpu"), nodes, tokenize=True).worker_cpus == 0.25
    assert place(ResourceConfig(workers=8), [Node(cpus=64, gpus=0)], tokenize=True).worker_cpus == 4


def test_a_gpu_that_is_asked_for_must_be_there():
    for asked in ({"device": "cuda"}, {"tokenizer_gpus": 0.25}):
        with pytest.raises(UserError, match="Ray sees no GPU"):
            place(ResourceConfig(**asked), CLUSTERS["laptop of 8"], tokenize=True)
    with pytest.raises(UserError, match=r"resources\.workers=8 need a GPU each, but Ray has 4"):
        place(ResourceConfig(workers=8), [Node(cpus=96, gpus=4)], tokenize=True)


def test_tokenizers_take_the_gpus_that_the_workers_leave():
    placement = place(ResourceConfig(workers=6), CLUSTERS["96 cores, 8 GPUs"], tokenize=True)
    assert (placement.worker_gpus, placement.tokenizer_gpus, placement.tokenizers) == (1.0, 1.0, (1, 2))


def test_a_tokenizer_with_a_whole_gpu_never_pushes_the_workers_off_theirs():
    with pytest.raises(UserError, match=r"4 workers x 1 GPU \+ 1 tokenizer x 1 GPU, but Ray has 4") as error:
        place(ResourceConfig(workers=4, tokenizer_gpus=1), [Node(cpus=64, gpus=4)], tokenize=True)
    assert "--resources.tokenizer-gpus 0.25" in error.value.remedy
    assert "--resources.workers 3" in error.value.remedy


def test_tokenizers_on_cpus_beside_gpu_workers_need_no_further_option():
    placement = place(ResourceConfig(tokenizer_gpus=0), [Node(cpus=16, gpus=1)], tokenize=True)
    assert (placement.worker_gpus, placement.tokenizer_device) == (1.0, "cpu")


@pytest.mark.parametrize(
    ("asked", "nodes", "cause", "remedy"),
    [
        (
            {"workers": 3, "worker_cpus": 1},
            "laptop of 2",
            "3 workers x 1 CPU: there is room for 2 on 1 machine x 2 CPU",
            "set --resources.worker-cpus 0.33",
        ),
        (
            {"workers": 2, "worker_cpus": 1},
            "laptop of 2",
            (
                "1 tokenizer x 0.28 CPU has no room: 2 workers x 1 CPU leave 1 machine x 0 CPU of 1 machine "
                "x 2 CPU"
            ),
            "set --resources.worker-cpus 0.5",
        ),
        (
            {"tokenizer_cpus": 2},
            "12 x 1 core",
            (
                "1 tokenizer x 2 CPU has no room: 1 worker x 0.5 CPU leave 1 machine x 0.5 CPU, 11 machines "
                "x 1 CPU of 12 machines x 1 CPU"
            ),
            "set --resources.tokenizer-cpus 0.4",
        ),
        (
            {"view_cpus": 2},
            "12 x 1 core",
            "1 reading task x 2 CPU has no room",
            "set --resources.view-cpus 1",
        ),
        (
            {"worker_cpus": 20, "tokenizer_cpus": 20},
            "4 x 16 cores",
            "1 worker x 20 CPU: there is room for 0 on 4 machines x 16 CPU",
            "set --resources.worker-cpus 8 --resources.tokenizer-cpus 2",
        ),
    ],
)
def test_what_has_no_room_is_named_with_the_arithmetic(asked, nodes, cause, remedy):
    with pytest.raises(UserError) as error:
        place(ResourceConfig(**asked), CLUSTERS[nodes], tokenize=True)
    assert cause in error.value.cause
    assert error.value.remedy == remedy


@pytest.mark.parametrize("nodes", [[], [Node(cpus=0, gpus=0)], [Node(cpus=0, gpus=8)]])
def test_a_cluster_without_cores_is_named_as_such(nodes):
    with pytest.raises(UserError, match="no cores to work with"):
        place(ResourceConfig(), nodes, tokenize=True)


def test_stages_with_machines_of_their_own_ask_for_the_tag_and_take_whole_gpus_there():
    placement = place(
        ResourceConfig(workers=32),
        TYPED_CLUSTERS["a head, and by autoscaling CPU, L4 and A100 machines"],
        tokenize=True,
    )
    assert (placement.worker_gpus, placement.tokenizer_gpus, placement.tokenizers) == (1.0, 1.0, (1, 8))
    assert set(placement.tag("train")) == {"train"}
    assert set(placement.tag("tokens")) == {"tokens"}
    assert placement.tag("views") == {}
    assert 96 * placement.tag("train")["train"] < 1, "the tag is not what limits a machine"


def test_gpus_that_would_have_to_be_paid_for_are_never_taken_without_being_asked_for():
    nodes = TYPED_CLUSTERS["a head, and by autoscaling CPU, L4 and A100 machines"]
    with pytest.raises(UserError, match="may grow to 32 for training: how many are wanted") as error:
        place(ResourceConfig(), nodes, tokenize=True)
    assert error.value.remedy.startswith("set --resources.workers 32")
    with pytest.raises(UserError, match=r"resources\.workers=40 need a GPU each, but Ray has 32"):
        place(ResourceConfig(workers=40), nodes, tokenize=True)


def test_a_group_that_grows_is_placed_by_the_workers_it_always_has():
    placement = place(ResourceConfig(workers="2..8"), [Node(cpus=16, gpus=2)], tokenize=False)
    assert (placement.workers, placement.most_workers) == (2, 8)
    assert placement.lines()[0].startswith("workers: 2 to 8 x 1 GPU")


@pytest.mark.parametrize(
    ("workers", "why"),
    [("2..2", "does not grow"), ("8..2", "does not grow"), ("0", "not positive"), (0, "not positive")],
)
def test_a_number_of_workers_that_is_none_is_refused(workers, why):
    with pytest.raises(UserError, match=why):
        check(ResourceConfig(workers=workers), "resources.")


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_a_group_that_grows_on_cores_leaves_room_for_its_stream_on_every_machine(machines):
    nodes = [Node(cpus=2, gpus=0)] * machines
    placement = place(ResourceConfig(workers="1..4"), nodes, tokenize=True)
    assert 2 // placement.worker_cpus == 1
    assert 2 - placement.worker_cpus >= placement.tokenizer_cpus + placement.view_cpus
    with pytest.raises(UserError, match="has no room"):
        place(ResourceConfig(workers=f"1..{2 * machines}", worker_cpus=1), nodes, tokenize=True)


def test_gpus_that_the_group_may_grow_to_are_not_given_to_tokenizers():
    placement = place(ResourceConfig(workers="2..8"), [Node(cpus=64, gpus=8)], tokenize=True)
    assert (placement.worker_gpus, placement.tokenizer_gpus) == (0.75, 0.25)
    assert place(ResourceConfig(workers="2..4"), [Node(cpus=64, gpus=8)], tokenize=True).tokenizers == (1, 4)


def test_every_stream_has_a_worker_a_tokenizer_and_a_reading_task():
    placement = place(
        ResourceConfig(workers=4, streams=2, tokenizers=5), [Node(cpus=32, gpus=4)], tokenize=True
    )
    assert placement.tokenizers == (2, 5)
    assert placement.of_stream.tokenizers == (1, 2)
    with pytest.raises(UserError, match=r"resources\.streams=3 cannot each have a worker of 2"):
        place(ResourceConfig(workers=2, streams=3), [Node(cpus=32, gpus=4)], tokenize=True)
    with pytest.raises(
        UserError, match=r"2 reading tasks x 1 CPU have no room: 2 workers x 0\.5 CPU \+ 2 tokenizers"
    ):
        place(
            ResourceConfig(workers=2, streams=2, view_cpus=1, worker_cpus=0.5),
            [Node(cpus=2, gpus=0)],
            tokenize=True,
        )
    few = place(ResourceConfig(workers=3, streams=2), [Node(cpus=6, gpus=0)], tokenize=True)
    assert 3 * few.worker_cpus + 2 * (few.tokenizer_cpus + few.view_cpus) <= 6
