"""The command: what it measures is a cost, what it prints the arithmetic's. How good forecasts are: docs/measurements.md."""

from pathlib import Path

import pytest

from beit.errors import UserError
from pipelines.cli import main
from pipelines.forecast import Costs
from pipelines.machines import machines_of
from pipelines.plan import PlanConfig, config_of, parse_prices, plan
from pipelines.presets import quickstart
from pipelines.rates import Rates

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"


@pytest.fixture
def measured(monkeypatch):
    """ViT-B with DALL-E's tokenizer, by its arithmetic, in place of a measurement."""
    costs = Costs(view=0.0025, token=0.65, step=1.3, token_flop=52.12e9, step_flop=107.98e9, moved=340_000)
    monkeypatch.setattr(
        "pipelines.plan.measure", lambda *args, **options: Rates(costs=costs, parameters=92_000_000, gpu=None, gpu_rate=None)
    )


def test_a_plan_for_this_machine_is_measured_and_says_what_limits_it(capsys):
    main(["plan", "quickstart", "--seconds", "0.5"])
    text = capsys.readouterr().out
    assert "steps: 250 x 64 images = 16,000 = 4 epochs" in text
    assert "; limited by " in text
    per_core = {name: float(rate) for name, rate in (item.rsplit(" ", 1) for item in line_of(text, "images/s on one core: ").split(", "))}
    # Less arithmetic is faster, on any machine: a view of 64 px than a tokenizer, and that than a training step.
    assert per_core["views"] > per_core["tokens"] > per_core["training"] / 2
    assert "checkpoints: 10.7 MB each (0.8922 M parameters and two moments)" in text


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
    # 8 x 312 TFLOP/s x 0.4 / 107.98 GFLOP would be 9,246; but of blocks of 64 images 50 a second pass.
    assert "3,200 to 3,200 images/s" in rates[0]
    assert "limited by one coordinator" in rates[0]
    assert "dollars" in rates[0]


def test_with_the_papers_batch_training_is_the_limit(measured):
    base = {**vars(config_of(quickstart())), "gpu": "H100", "token_gpu": "L4"}
    base["optim"] = type(base["optim"])(global_batch_size=2048)
    lines = list(plan(PlanConfig(**{**base, "steps": 500_000}), preset="base"))
    eight = next(line for line in lines if line.startswith("8 x H100"))
    assert "limited by one coordinator" in eight  # 8 x 5,495 images/s at 60 % are 172 blocks of 256 a second
    assert any("would need" in line and "streams" in line for line in lines)


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
