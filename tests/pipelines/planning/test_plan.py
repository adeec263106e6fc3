"""The command `beit plan`: what it measures and prints. How good forecasts are: docs/log/speed.md."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from beit.errors import UserError
from beit.plain import override
from pipelines.cli import main
from pipelines.cluster.node_types import NodeType, node_types_of, read_node_types
from pipelines.cluster.nodes import nodes_to_come
from pipelines.cluster.placement import Node, place
from pipelines.planning.config import PlanConfig, config_of, parse_prices
from pipelines.planning.forecast import COORDINATOR_BLOCKS, Costs, GpuRates, Machines
from pipelines.planning.machines import (
    cores_of,
    machine_of_its_own,
    machines_of,
    machines_of_nodes,
    most_of,
    with_tokenizers,
)
from pipelines.planning.plan import plan
from pipelines.planning.rates import Rates, _time
from pipelines.presets.pretrain import PRESETS, quickstart
from pipelines.scenes.shards import write_scenes

CLUSTERS = Path(__file__).resolve().parents[3] / "clusters"


@pytest.fixture
def alone(monkeypatch):
    """No cluster is connected, though another test may have started one."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def measured(monkeypatch, alone):
    """Replace the measurement by the costs of ViT-B with DALL-E's tokenizer; returns the measurements that
    were requested.
    """
    costs = Costs(view=0.0025, token=0.65, step=1.3, token_flop=52.12e9, step_flop=107.98e9, moved=340_000)
    rates = Rates(costs=costs, parameters=92_000_000, gpu=None, machine="a machine", cores=2, load=0.0)
    calls = []
    monkeypatch.setattr("pipelines.planning.plan.SCENES", 8)
    monkeypatch.setattr(
        "pipelines.planning.plan.measure",
        lambda config, source, *args, **options: calls.append((config, source)) or rates,
    )
    return calls


def planned(preset="quickstart", **options):
    """The lines of a plan by the command's options."""
    return plan(
        override(
            config_of(PRESETS[preset]()), {name.replace("__", "."): value for name, value in options.items()}
        ),
        preset=preset,
    )


@pytest.mark.usefixtures("alone")
def test_a_plan_for_this_machine_is_measured_and_says_what_limits_it(capsys):
    main(["plan", "quickstart", "--seconds", "0.5"])
    text = capsys.readouterr().out
    assert "steps: 250 x 64 images = 16,000 = 4 epochs" in text
    assert "; limited by " in text
    per_core = {
        name: float(rate)
        for name, rate in (
            item.rsplit(" ", 1) for item in line_of(text, "images/s on one core: ").split(", ")
        )
    }
    # Less arithmetic is faster, on any machine: a view of 64 px than a tokenizer, and that than a training
    # step.
    assert per_core["views"] > per_core["tokens"] > per_core["training"] / 2
    assert "checkpoints: 10.7 MB each (0.8922 M parameters and two moments)" in text


@pytest.mark.usefixtures("ray_cluster")
def test_a_plan_for_a_connected_cluster_is_measured_there_and_not_on_the_driver(monkeypatch, capsys):
    def refuse(*args, **options):
        raise AssertionError("the driver's own cores were measured")

    monkeypatch.setattr(
        "pipelines.planning.plan.measure", refuse
    )  # Ray's processes have modules of their own.
    main(["plan", "quickstart", "--seconds", "0.5"])
    text = capsys.readouterr().out
    assert line_of(text, "measured on a machine of the cluster: ").split(" | ")[1].startswith("python ")
    assert "the cluster (1 workers, 2 cores): " in text


def test_the_machines_of_a_connected_cluster_are_told_by_their_resources():
    head, views = {"CPU": 0.0}, {"CPU": 32.0, "views": 1.0}
    train = {"CPU": 96.0, "GPU": 8.0, "train": 1.0, "accelerator_type:A100-80G": 1.0}
    tokens = {"CPU": 16.0, "GPU": 1.0, "tokens": 1.0, "accelerator_type:L40S": 1.0}
    found = machines_of_nodes([head, views, train, tokens])
    assert (found.train_gpu, found.train_gpus, found.train_cores) == ("A100", 8, 96)
    assert (found.token_gpu, found.token_gpus, found.view_cores) == ("L40S", 1, 32)
    assert not found.views_beside
    assert machines_of_nodes([head, {"CPU": 32.0}, train]).views_beside
    assert machines_of_nodes([head, views, {**train, "views": 1.0}]).views_beside, "they have both tags"
    assert machines_of_nodes([head, views, {"CPU": 64.0}, train]).view_cores == 32, "others have no tag"
    assert machines_of_nodes([head, views]) is None
    assert machines_of_nodes([train]).token_gpu is None
    with pytest.raises(UserError, match="the cluster: the kind of the GPUs of a node of 1 GPU"):
        machines_of_nodes([{"CPU": 8.0, "GPU": 1.0, "accelerator_type:X1": 1.0}])
    assert machines_of_nodes([{"CPU": 8.0, "GPU": 1.0}], gpu="H100").train_gpu == "H100"


@pytest.fixture
def with_gpus(monkeypatch, measured):
    """This machine has four of them, which were measured."""
    node = Node(cpus=32.0, gpus=4.0)
    monkeypatch.setattr("pipelines.planning.plan.this_machine", lambda cpus: [node])
    monkeypatch.setattr("pipelines.planning.plan.gpu_kind", lambda: "GeForce")
    gpu = GpuRates(kind="GeForce", train=1000.0, tokens=4000.0)
    costs = Costs(view=0.0025, token=0.65, step=1.3, token_flop=52.12e9, step_flop=107.98e9, moved=340_000)
    rates = Rates(costs=costs, parameters=92_000_000, gpu=gpu, machine="a machine", cores=32, load=0.0)
    monkeypatch.setattr(
        "pipelines.planning.plan.measure",
        lambda config, *args, tokenized, **options: (
            measured.append(config)
            or replace(rates, costs=costs if tokenized else replace(costs, token=0.0, token_flop=0.0))
        ),
    )
    return node


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The run takes all GPUs; its tokenizers share them: 1 ms for the step + 0.25 ms for the tokens of an
        # image.
        ({}, "4 x GeForce: 3,200 images/s, "),
        # Two GPUs are left: each has a tokenizer, and 2 x 4,000 is more than 2 x 1,000.
        ({"resources__workers": 2}, "2 x GeForce: 2,000 images/s, "),
        ({"target__kind": "pixels"}, "4 x GeForce: 4,000 images/s, "),
        # 28 cores, of which Ray leaves 90 %, for 2.5 ms of views and 650 ms of tokens.
        ({"resources__tokenizer_gpus": 0}, "4 x GeForce: 39 images/s, "),
    ],
)
def test_the_gpus_of_this_machine_are_planned_as_the_run_takes_them(with_gpus, measured, options, expected):
    lines = list(planned(**LARGE, **options))
    assert next(line for line in lines if " x GeForce: " in line).startswith(expected)
    assert not any("extrapolated" in line or "dollars" in line for line in lines), "all of it was measured"
    assert any(line.startswith("one GeForce: trains on 1,000 images/s") for line in lines)
    assert measured[0].resources.workers == options.get("resources__workers", 4)


def test_this_machine_is_planned_for_its_cores_only_where_the_run_is_to_use_them(with_gpus):
    lines = list(planned(resources__device="cpu"))
    assert any(line.startswith("this machine (1 workers, 32 cores): ") for line in lines)
    more = [line for line in planned(resources__workers=2, **LARGE) if " x GeForce: " in line]
    assert more[-1] == "8 x GeForce: this machine has 4"
    with pytest.raises(UserError, match=r"resources\.workers=8 need a GPU each, but Ray has 4"):
        list(planned(resources__workers=8, **LARGE))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 4},
        {"workers": 3},
        {"workers": 2, "tokenizers": 1},
        {"workers": 3, "tokenizers": 2},
        {"workers": 3, "tokenizers": 5},
        {"workers": 2, "tokenizer_gpus": 0.5},
        {"tokenizer_gpus": 0.25},
        {"tokenizer_gpus": 0},
    ],
)
def test_tokenizers_are_planned_where_a_run_places_them(options):
    node = Node(cpus=64.0, gpus=4.0)
    config = replace(quickstart().resources, **options)
    placement = place(config, [node], tokenize=True)
    found = with_tokenizers(machine_of_its_own(node, gpu="H100"), config, workers=placement.workers)
    on_their_own = placement.tokenizer_gpus > 0 and placement.worker_gpus == 1.0
    assert (found.tokens == "cores") == (placement.tokenizer_gpus == 0)
    assert (found.token_gpu is not None) == on_their_own
    if on_their_own:
        assert found.most["tokens"] == math.ceil(placement.tokenizers[1] * placement.tokenizer_gpus)


def line_of(text, start):
    return next(line.removeprefix(start) for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_shipped_cluster_files_are_understood(cloud):
    machines = machines_of(str(CLUSTERS / f"{cloud}.yaml"))
    assert (machines.train_gpu, machines.train_gpus, machines.train_cores) == ("A100", 8, 96)
    assert machines.token_gpu == {"aws": "L4", "gcp": "L4", "azure": "T4"}[cloud]
    assert machines.view_cores >= 16


def test_a_cluster_is_extrapolated_and_says_so_with_nodes_and_money(measured):
    config = PlanConfig(
        **{
            **vars(config_of(quickstart())),
            "cluster": str(CLUSTERS / "aws.yaml"),
            "price": "train=10..30,tokens=1,head=0.2",
        }
    )
    lines = list(plan(config, preset="quickstart"))
    assert any(
        line.startswith(
            "extrapolated, not measured: TFLOP/s of the data sheets (A100 312, L4 121) x 40% to 60%"
        )
        for line in lines
    )
    rates = [line for line in lines if line.startswith("8 x A100")]
    # 8 L4 x 121 TFLOP/s x 0.4 / 52.12 GFLOP, and at 0.6: less than the 9,246 to 13,869 images/s that 8 A100
    # train on.
    assert "7,429 to 11,144 images/s" in rates[0]
    assert "dollars" in rates[0]
    supposed = list(planned(cluster=AWS, token_gpu="A100"))
    faster = [line for line in supposed if line.startswith("8 x A100")]
    assert "9,246 to 13,869 images/s" in faster[0]  # 8 x 312 TFLOP/s x 0.4 / 107.98 GFLOP, and at 0.6
    assert "limited by training" in faster[0]
    warning = "warning: the plan assumes other GPUs than the machines have"
    assert [line for line in supposed if line.startswith(warning)] == [
        f"{warning}: tokens-spot: A100 in place of L4"
    ]
    assert not any(line.startswith(warning) for line in lines)


def test_more_streams_are_named_where_one_coordinator_cannot_pass_all_blocks(measured):
    base = {**vars(config_of(quickstart())), "gpu": "H100", "token_gpu": "L4"}
    base["optim"] = type(base["optim"])(global_batch_size=2048)
    lines = list(plan(PlanConfig(**{**base, "steps": 500_000}), preset="base"))
    after = {
        int(line.split()[0]): lines[number + 1] for number, line in enumerate(lines) if " x H100: " in line
    }
    # 8 x 5,495 images/s at 60 % are 171.7 blocks of 256 a second.
    assert (
        f"with --resources.streams {math.ceil(171.7 / COORDINATOR_BLOCKS[2])}: its 172 blocks of 256 images "
        "a second from 110 cores"
    ) in after[8]
    assert (
        f"with --resources.streams {math.ceil(5495.4 / COORDINATOR_BLOCKS[2])}: its 5,495 blocks of 64 images"
        in after[64]
    )
    base["resources"] = type(base["resources"])(streams=1)
    lines = list(plan(PlanConfig(**{**base, "steps": 500_000}), preset="base"))
    asked = next(line for line in lines if line.startswith("8 x H100: "))
    assert "limited by 1 coordinator;" in asked
    assert not any("with --resources.streams" in line for line in lines), "what was asked for is planned"


@pytest.mark.parametrize(
    "file", ["aws.yaml", "gcp.yaml", "azure.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
)
def test_cores_are_told_by_the_machines_names(file):
    types = read_node_types(str(CLUSTERS / file))
    assert cores_of(types.head) == (2 if "kuberay" in file else 4)
    for kind in types.kinds:
        named = cores_of(replace(kind, resources={}))
        assert named in (None, kind.resources["CPU"]), kind
        assert named or not kind.machine or "a2-highgpu" in kind.machine
    assert cores_of(NodeType(name="head", resources={"CPU": 0.0}, machine="odd")) is None


def test_the_heads_cores_bound_the_streams(measured, tmp_path):
    (tmp_path / "large.yaml").write_text(
        (CLUSTERS / "aws.yaml").read_text().replace("m7i.xlarge", "m7i.2xlarge")
    )
    # 8 GPUs for tokens x 312 TFLOP/s x 0.6 / 52.12 GFLOP = 28,735 images/s in blocks of 2048 / 32 images: 449
    # a second, 90 a coordinator.
    options = {"token_gpu": "A100", "resources__workers": 32, **LARGE}
    lines = list(planned(cluster=AWS, **options))
    assert "head: 4 cores, for the coordinators of at most as many streams" in lines
    line = next(line for line in lines if line.startswith("32 x A100: "))
    assert f"to {4 * 64 * COORDINATOR_BLOCKS[2]:,.0f} images/s" in line
    assert "limited by 4 coordinators" in line
    assert any(
        line.startswith(
            "  5 coordinators would pass all that the rest allows, each on a core of the head, which has 4"
        )
        for line in lines
    )
    lines = list(planned(cluster=str(tmp_path / "large.yaml"), **options))
    assert any(line.startswith("  with --resources.streams 5: ") for line in lines)
    assert not any("coordinators would pass" in line for line in lines)


def test_a_cluster_without_a_core_for_views_is_refused(measured, monkeypatch):
    none = Machines(
        train_gpu="H100",
        train_gpus=8,
        train_cores=8,
        token_gpu="L4",
        token_gpus=1,
        view_cores=16,
        most={"views": 0},
    )
    monkeypatch.setattr("pipelines.planning.plan._machines", lambda config: none)
    with pytest.raises(UserError, match="nothing for one of the stages: views, at most on 0 cores"):
        list(plan(config_of(quickstart()), preset="quickstart"))


@pytest.mark.parametrize("text", ["train", "train=1..x", "train=3..1", "gpu=3", "train=-1"])
def test_prices_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=r"is no (price|stage)"):
        parse_prices(text)


def test_prices_are_a_range_or_one_number():
    assert parse_prices("train=10..33, head=0.2") == {"train": (10.0, 33.0), "head": (0.2, 0.2)}


def test_what_cannot_be_planned_is_refused(tmp_path):
    with pytest.raises(UserError, match="its rate is not known"):
        PlanConfig(gpu="H1000")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        machines_of(str(tmp_path / "none.yaml"))
    text = (CLUSTERS / "aws.yaml").read_text().replace("p4d.24xlarge", "x9.large")
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=r"the GPUs of train-spot \(x9\.large\)"):
        machines_of(str(tmp_path / "odd.yaml"))
    assert machines_of(str(tmp_path / "odd.yaml"), gpu="H100").train_gpu == "H100"


AWS = str(CLUSTERS / "aws.yaml")
LARGE = {"optim__global_batch_size": 2048, "steps": 500_000}


def test_a_cluster_is_never_planned_beyond_what_its_file_may_have(measured):
    # aws.yaml: 4 nodes of 8 A100, on spot or on demand: a driver counts equal machines once.
    with pytest.raises(
        UserError, match=r"resources\.workers=64 need a GPU each, but .*aws\.yaml may have 32"
    ) as error:
        list(planned(cluster=AWS, resources__workers=64, **LARGE))
    assert "set --resources.workers 32" in error.value.remedy
    assert not measured, "it was refused before anything was measured"
    lines = [line for line in planned(cluster=AWS, **LARGE) if " x A100: " in line]
    assert [line.split(" x ")[0] for line in lines] == ["8", "16", "32", "64"]
    assert lines[-1] == f"64 x A100: {AWS} may have 32 (max_workers)"
    # 32 A100 at 60 % take 55,475 images/s, 8 L4 tokenise 8 x 121 TFLOP/s x 0.6 / 52.12 GFLOP = 11,144 of
    # them.
    assert "11,144 images/s" in lines[2]
    assert "limited by tokens, at most on 8 x L4; nodes: 4 train, 8 tokens" in lines[2]


def test_the_most_nodes_of_a_file_bound_all_its_types_together(measured, tmp_path):
    content = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    for kind in content["available_node_types"].values():
        kind.pop("max_workers", None)
        kind["node_config"].pop("InstanceType") if kind["resources"] == {"CPU": 16} else None
    content["max_workers"] = 3
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(content))
    lines = [line for line in planned(cluster=str(tmp_path / "few.yaml"), **LARGE) if " x A100: " in line]
    # A training node leaves two for tokens: 2 x 121 TFLOP/s x 0.6 / 52.12 GFLOP; views come from the 88 cores
    # beside the workers.
    assert "2,786 images/s" in lines[0]
    assert "limited by all nodes, at most 3; nodes: 1 train, 2 tokens" in lines[0]
    assert lines[2] == f"32 x A100: {tmp_path / 'few.yaml'} may have 24 (max_workers)"
    types = read_node_types(str(tmp_path / "few.yaml"))
    assert {kind.max_workers for kind in types.kinds} == {3}
    assert {kind.machine for kind in types.kinds if kind.name.startswith("views")} == {""}, (
        "what is not said has no name"
    )


def test_the_limits_of_a_growing_cluster_are_those_that_a_driver_counts():
    alive = [{"CPU": 96.0, "GPU": 8.0, "train": 1.0, "accelerator_type:A100": 1.0}]
    train = {"max_workers": 3, "resources": {"CPU": 96, "GPU": 8, "train": 1}}
    types = node_types_of(
        {"train": train, "train-spot": train, "views": {"max_workers": 5, "resources": {"CPU": 16}}}
    )
    there = [Node(cpus=96, gpus=8, stages=frozenset({"train"}))]
    found = machines_of_nodes([*alive, {"CPU": 16.0}], types=types, there=there, gpu="A100")
    assert (
        found.most == {"train": 24, "tokens": 0, "views": 80} == most_of(there + nodes_to_come(types, there))
    )
    capped = machines_of_nodes(alive, types=replace(types, most=4), there=there, gpu="A100")
    assert (capped.most, capped.most_nodes) == (found.most, 4), (
        "each stage may have all of its own, but not all of them at once"
    )
    assert machines_of_nodes(alive).most == {}, "nobody said what it may grow to"
    with pytest.raises(UserError, match="the kind of the GPUs of train is not known") as error:
        machines_of_nodes([{"CPU": 0.0}], types=node_types_of({"train": train}))
    assert "--gpu" in error.value.remedy
    assert machines_of_nodes([{"CPU": 0.0}], types=types, gpu="H100").train_gpus == 8


@pytest.mark.parametrize(
    ("name", "most"),
    [("raycluster", {"train": 32, "tokens": 8, "views": 256}), ("rayjob", {"train": 8, "views": 128})],
)
def test_files_of_kubernetes_are_understood_but_for_the_kind_of_their_gpus(name, most):
    file = str(CLUSTERS / "kuberay" / f"{name}.yaml")
    own = "tokens" in most
    with pytest.raises(
        UserError, match="the GPUs of train and tokens is" if own else "the GPUs of train is"
    ) as error:
        machines_of(file)
    assert ("--token-gpu" in error.value.remedy) == own
    found = machines_of(file, gpu="H100", token_gpu="L4" if own else None)
    assert (found.train_gpu, found.train_gpus, found.train_cores, found.view_cores) == ("H100", 8, 64, 16)
    assert found.token_gpu == ("L4" if own else None)
    assert found.most == {"tokens": 0, **most}
    # The head's environment tells a driver the same.
    [content] = [
        document for document in yaml.safe_load_all(Path(file).read_text()) if "Ray" in document["kind"]
    ]
    spec = content["spec"].get("rayClusterSpec", content["spec"])
    told = next(
        variable["value"]
        for variable in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "BEIT_NODE_TYPES"
    )
    assert most_of(nodes_to_come(node_types_of(yaml.safe_load(told)), [])) == found.most


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("# a: heading\n\n`beit: x`\n", "is no YAML (line 3)"),
        ("kind: Deployment\n", "is neither a file for ray up nor a RayCluster or RayJob"),
        ("just words\n", "is neither"),
        (
            "available_node_types: {train: {}}\n",
            "does not describe its nodes as it should: head_node_type is missing",
        ),
        ("kind: RayCluster\nspec: {}\n", "workerGroupSpecs is missing"),
    ],
)
def test_what_is_no_cluster_file_is_said_in_a_line(tmp_path, text, cause):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        machines_of(str(tmp_path / "x.yaml"))
    assert cause in error.value.cause
    assert "\n" not in error.value.cause


def test_the_published_tokenizer_is_planned_without_its_weights(measured):
    lines = list(planned("base", images=1_281_167, gpu="A100"))
    assert any("DALL-E's weights do not come with the package" in line for line in lines)
    [(config, _)] = measured
    assert config.tokenizer.name == "random-dalle"
    lines = list(planned(gpu="A100"))
    assert not any("DALL-E" in line for line in lines)
    assert measured[1][0].tokenizer.name == "scenes64"


def test_what_is_known_is_said_before_anything_is_measured(measured):
    lines = planned(gpu="A100")
    begun = [next(lines) for _ in range(3)]
    assert not measured
    assert [line.split()[0] for line in begun] == ["data:", "steps:", "measuring"]
    assert next(lines).startswith("measured here: ")


def test_a_slow_stage_is_timed_on_one_image_and_a_fast_one_on_many(monkeypatch):
    now, done = [0.0], []
    monkeypatch.setattr("pipelines.planning.rates.time.perf_counter", lambda: now[0])

    def work(images, an_image):
        done.append(images)
        now[0] += an_image * images

    spent, images = _time(lambda images: work(images, 20.0), most=64, seconds=3.0, clock=lambda: now[0])
    assert (spent, images, done) == (20.0, 1, [1]), "it is warm already: once is all that there is time for"
    now[0], done[:] = 0.0, []
    spent, images = _time(lambda images: work(images, 0.125), most=64, seconds=3.0, clock=lambda: now[0])
    assert (spent, images) == (1.0, 8)  # a third of 3 s
    assert now[0] == pytest.approx(3, abs=1.2)
    assert _time(lambda images: work(images, 0.001), most=64, seconds=3.0, clock=lambda: now[0])[1] == 64


def test_images_that_are_not_there_are_planned_by_a_sample_of_them(measured, tmp_path):
    write_scenes(tmp_path, images=8, seed=0, image_size=32)
    options = {
        "images": 1_000_000_000,
        "resources__workers": 512,
        "gpu": "H100",
        "token_gpu": "L4",
        "epochs": 2,
    }
    lines = list(planned("base", data__train=str(tmp_path), **options))
    assert lines[0].startswith("data: 1,000,000,000 images (--images), measured on ")
    assert lines[0].endswith("(parquet)")
    assert measured[0][1].uri == str(tmp_path)
    assert lines[1].startswith("steps: 976,562 x 2,048 images = ")  # 2 x (10^9 // 2048)
    assert any(line.startswith("512 x H100: ") for line in lines)
    lines = list(planned("base", **options))
    assert lines[0] == (
        "data: 1,000,000,000 images (--images), measured on 8 rendered scenes, which cost less than "
        "photographs"
    )
    assert measured[1][1].manifest.total == 8
    with pytest.raises(UserError, match="what an image costs") as error:
        list(planned("base", gpu="H100"))
    assert "--images" in error.value.remedy


def test_workers_that_this_machine_cannot_have_are_referred_to_a_cluster(measured):
    with pytest.raises(UserError, match=r"Ray sees no GPU, and resources\.workers=512") as error:
        list(planned(resources__workers=512, **LARGE))
    assert "--cluster FILE" in error.value.remedy
    assert "--gpu KIND" in error.value.remedy
    with pytest.raises(UserError, match=r"= 0\.12 images each") as error:
        list(planned(resources__workers=512))
    assert error.value.remedy.startswith("set the global batch to 512, or")


def test_a_batch_that_the_run_would_not_divide_among_its_workers_is_refused_and_larger_groups_say_so(
    measured,
):
    for batch, each in ((4, "0.50"), (100, "12.50")):
        with pytest.raises(UserError, match=rf"{batch} / resources\.workers=8 = {each} images each"):
            list(planned(gpu="H100", optim__global_batch_size=batch))
    assert not measured, "it was refused before anything was measured"
    lines = [line for line in planned(gpu="H100", optim__global_batch_size=24) if " x H100: " in line]
    assert "images/s" in lines[0]
    assert [line.partition(": ")[2] for line in lines[1:]] == [
        f"optim.global_batch_size=24 does not divide among {workers} workers" for workers in (16, 32, 64)
    ]
    lines = [
        line
        for line in planned(gpu="H100", optim__global_batch_size=100, resources__workers="8..64")
        if " x H100: " in line
    ]
    assert ["images/s" in line for line in lines] == [True] * 4, "an elastic group takes unequal shares"
    lines = [
        line for line in planned(optim__global_batch_size=2) if " limited by " in line or "divide" in line
    ]
    assert ["images/s" in line for line in lines] == [True, True, False, False]


def test_a_short_run_on_many_nodes_costs_what_the_nodes_cost_while_they_come_and_go(measured):
    price = "train=24,tokens=0.6,views=0.6,head=0.6"
    lines = list(planned(cluster=AWS, price=price, steps=1))
    [line] = [line for line in lines if line.startswith("8 x A100: ")]
    # Ten minutes of a training node, the head and 8 L4 (11,144 images/s are fewer than the GPUs take): 4.9
    # dollars.
    assert line.endswith("; 5 to 5 dollars"), line
    assert (
        "costs include 10 minutes of all nodes in addition to the run, for their start and for idle time "
        "before they are removed"
    ) in lines
