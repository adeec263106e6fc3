"""The command: what it measures is a cost, what it prints the arithmetic's. How good forecasts are: docs/measurements.md."""

import math
from pathlib import Path

import pytest

from beit.config import override
from beit.errors import UserError
from pipelines.cli import main
from pipelines.forecast import COORDINATOR_BLOCKS, Costs
from pipelines.machines import machines_of, machines_of_nodes
from pipelines.plan import PlanConfig, config_of, parse_prices, plan
from pipelines.presets import quickstart
from pipelines.rates import Rates

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"


@pytest.fixture
def alone(monkeypatch):
    """No cluster is connected, though another test may have started one."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def measured(monkeypatch, alone):
    """ViT-B with DALL-E's tokenizer, by its arithmetic, in place of a measurement."""
    costs = Costs(view=0.0025, token=0.65, step=1.3, token_flop=52.12e9, step_flop=107.98e9, moved=340_000)
    rates = Rates(costs=costs, parameters=92_000_000, gpu=None, gpu_rate=None, machine="a machine", cores=2, load=0.0)
    monkeypatch.setattr("pipelines.plan.measure", lambda *args, **options: rates)


@pytest.mark.usefixtures("alone")
def test_a_plan_for_this_machine_is_measured_and_says_what_limits_it(capsys):
    main(["plan", "quickstart", "--seconds", "0.5"])
    text = capsys.readouterr().out
    assert "steps: 250 x 64 images = 16,000 = 4 epochs" in text
    assert "; limited by " in text
    per_core = {name: float(rate) for name, rate in (item.rsplit(" ", 1) for item in line_of(text, "images/s on one core: ").split(", "))}
    # Less arithmetic is faster, on any machine: a view of 64 px than a tokenizer, and that than a training step.
    assert per_core["views"] > per_core["tokens"] > per_core["training"] / 2
    assert "checkpoints: 10.7 MB each (0.8922 M parameters and two moments)" in text


@pytest.mark.usefixtures("ray_cluster")
def test_a_plan_for_a_connected_cluster_is_measured_there_and_not_on_the_driver(monkeypatch, capsys):
    def refuse(*args, **options):
        raise AssertionError("the driver's own cores were measured")

    monkeypatch.setattr("pipelines.plan.measure", refuse)  # Ray's processes have modules of their own.
    main(["plan", "quickstart", "--seconds", "0.5"])
    text = capsys.readouterr().out
    assert line_of(text, "measured on a machine of the cluster: ").split(" | ")[1].startswith("python ")
    assert "the cluster (1 workers, 2 cores): " in text
    with pytest.raises(UserError, match="what an image costs"):  # raised on the cluster, told as it is
        list(plan(config_of(override(quickstart(), {"data.train": None, "model.image_size": 224})), preset="quickstart"))


def test_the_machines_of_a_connected_cluster_are_told_by_their_resources():
    head, views = {"CPU": 0.0}, {"CPU": 32.0, "views": 1.0}
    train = {"CPU": 96.0, "GPU": 8.0, "train": 1.0, "accelerator_type:A100-80G": 1.0}
    tokens = {"CPU": 16.0, "GPU": 1.0, "tokens": 1.0, "accelerator_type:L40S": 1.0}
    found = machines_of_nodes([head, views, train, tokens])
    assert (found.train_gpu, found.train_gpus, found.train_cores) == ("A100", 8, 96)
    assert (found.token_gpu, found.token_gpus, found.view_cores) == ("L40S", 1, 32)
    assert machines_of_nodes([head, views]) is None
    assert machines_of_nodes([train]).token_gpu is None
    with pytest.raises(UserError, match="the cluster's GPUs are X1"):
        machines_of_nodes([{"CPU": 8.0, "GPU": 1.0, "accelerator_type:X1": 1.0}])
    assert machines_of_nodes([{"CPU": 8.0, "GPU": 1.0}], gpu="H100").train_gpu == "H100"


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
        **{**vars(config_of(quickstart())), "cluster": str(CLUSTERS / "aws.yaml"), "price": "train=10..30,tokens=1,head=0.2"}
    )
    lines = list(plan(config, preset="quickstart"))
    assert any(line.startswith("extrapolated, not measured: TFLOP/s of the data sheets (A100 312, L4 121) x 40% to 60%") for line in lines)
    rates = [line for line in lines if line.startswith("8 x A100")]
    assert "9,246 to 13,869 images/s" in rates[0]  # 8 x 312 TFLOP/s x 0.4 / 107.98 GFLOP, and at 0.6
    assert "limited by training" in rates[0]
    assert "dollars" in rates[0]


def test_more_streams_are_named_where_one_coordinator_cannot_pass_all_blocks(measured):
    base = {**vars(config_of(quickstart())), "gpu": "H100", "token_gpu": "L4"}
    base["optim"] = type(base["optim"])(global_batch_size=2048)
    lines = list(plan(PlanConfig(**{**base, "steps": 500_000}), preset="base"))
    after = {int(line.split()[0]): lines[number + 1] for number, line in enumerate(lines) if " x H100: " in line}
    # 8 x 5,495 images/s at 60 % are 171.7 blocks of 256 a second.
    assert (
        f"with --resources.streams {math.ceil(171.7 / COORDINATOR_BLOCKS[2])}: its 172 blocks of 256 images a second from 110 cores"
        in after[8]
    )
    assert f"with --resources.streams {math.ceil(5495.4 / COORDINATOR_BLOCKS[2])}: its 5,495 blocks of 64 images" in after[64]
    base["resources"] = type(base["resources"])(streams=1)
    lines = list(plan(PlanConfig(**{**base, "steps": 500_000}), preset="base"))
    asked = next(line for line in lines if line.startswith("8 x H100: "))
    assert "limited by 1 coordinator;" in asked
    assert not any("with --resources.streams" in line for line in lines), "what was asked for is planned"


@pytest.mark.parametrize("text", ["train", "train=1..x", "train=3..1", "gpu=3", "train=-1"])
def test_prices_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="no price"):
        parse_prices(text)


def test_prices_are_a_range_or_one_number():
    assert parse_prices("train=10..33, head=0.2") == {"train": (10.0, 33.0), "head": (0.2, 0.2)}


def test_what_cannot_be_planned_is_refused(tmp_path):
    with pytest.raises(UserError, match="its rate is not known"):
        PlanConfig(gpu="H1000")
    with pytest.raises(UserError, match="no file for ray up"):
        machines_of(str(tmp_path / "none.yaml"))
    text = (CLUSTERS / "aws.yaml").read_text().replace("p4d.24xlarge", "x9.large")
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=r"which GPU x9\.large"):
        machines_of(str(tmp_path / "odd.yaml"))
    assert machines_of(str(tmp_path / "odd.yaml"), gpu="H100").train_gpu == "H100"
