import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from beit.errors import UserError
from pipelines.runs import evaluations
from pipelines.tools.compare import CompareConfig, compare, group, read_run


def make_run(folder, *, job="finetune", seed=0, lr=1e-3, losses=(3.0, 2.0), top1=(), **options):
    """A run folder as a job leaves it, with a value every 10 steps."""
    folder.mkdir()
    config = {
        "seed": seed,
        "optim": {"peak_lr": lr},
        "output": {"name": folder.name},
        "resources": {"workers": seed},
        **options,
    }
    (folder / "config.json").write_text(
        json.dumps({"job": job, "preset": "x", "inputs": {}, "config": config})
    )
    rows = [{"step": 10 * index, "train/loss": loss} for index, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "validation").mkdir()
    for index, value in enumerate(top1, 1):
        (folder / "validation" / f"step-{10 * index:08d}.json").write_text(
            json.dumps({"step": 10 * index, "top1": value})
        )
    return str(folder)


def test_runs_that_differ_by_their_seed_alone_are_one_group_named_by_what_tells_it_from_others(tmp_path):
    paths = [
        make_run(tmp_path / f"{lr}-{seed}", seed=seed, lr=lr) for lr in (1e-3, 2e-3) for seed in range(3)
    ]
    groups = group([read_run(path) for path in paths])
    assert [one.name for one in groups] == ["optim.peak_lr 0.001", "optim.peak_lr 0.002"]
    assert [[run.uri for run in one.runs] for one in groups] == [paths[:3], paths[3:]]


def test_named_runs_are_grouped_by_name_whatever_they_differ_in(tmp_path):
    paths = [make_run(tmp_path / f"{seed}", seed=seed, start=f"runs/pretrained-{seed}") for seed in range(2)]
    groups = group([read_run(f"BEiT={path}") for path in paths])
    assert [(one.name, len(one.runs)) for one in groups] == [("BEiT", 2)]


def test_the_figures_are_the_last_values_at_steps_that_all_runs_of_a_group_have(tmp_path):
    first = make_run(tmp_path / "a", seed=1, losses=(3.0, 2.0), top1=(0.25, 0.5))
    second = make_run(tmp_path / "b", seed=2, losses=(4.0, 3.0, 1.0), top1=(0.25, 0.75, 1.0))
    lines = compare(CompareConfig(runs=(first, second), out=str(tmp_path / "out.png")))
    assert lines[0] == "all (2 runs): validation top-1 62.50% ± 17.68%, loss in training 2.500 ± 0.707"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    found = {(row["run"], row["metric"]): (int(row["step"]), float(row["value"])) for row in rows}
    assert found[second, "top1"] == (20, 0.75)
    assert found[first, "train/loss"] == (20, 2.0)


def test_a_curve_goes_through_every_run_although_they_reported_at_different_steps(tmp_path):
    paths = [make_run(tmp_path / "even", losses=(4.0, 2.0, 1.0)), make_run(tmp_path / "odd", seed=1)]
    rows = [{"step": step, "train/loss": loss} for step, loss in ((5, 9.0), (15, 3.0), (30, 3.0))]
    (tmp_path / "odd" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    steps, values = group([read_run(path) for path in paths])[0].curve("train/loss")
    assert steps == [10, 15, 20, 30]
    assert values.tolist() == [[4.0, 3.0, 2.0, 1.0], [6.0, 3.0, 3.0, 3.0]]


def test_a_test_at_several_scales_is_not_compared_with_one_at_a_single_scale(tmp_path):
    path = make_run(tmp_path / "run", job="segment")
    single, several = (
        {"stride": None, "ratios": [1.0], "flip": False},
        {"stride": None, "ratios": [0.5, 1.0], "flip": True},
    )
    for step, variant, test, value in (
        (10, "", single, 0.3),
        (20, "", single, 0.4),
        (20, "-0.5x-1x-flip", several, 0.45),
    ):
        evaluations.save(path, "validation", step, {"mean_iou": value, "test": test}, variant=variant)
    assert read_run(path).curves["mean_iou"] == {10: 0.3, 20: 0.4}
    assert [one["mean_iou"] for one in evaluations.alike(evaluations.read(path, "validation")[:2])] == [
        0.3,
        0.4,
    ]
    assert evaluations.alike([]) == []


def test_the_picture_has_a_chart_a_metric_side_by_side(tmp_path):
    runs = tuple(make_run(tmp_path / f"{seed}", seed=seed, top1=(0.1, 0.2)) for seed in range(2))
    compare(CompareConfig(runs=runs, out=str(tmp_path / "out.png")))
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 2.5 * image.height
        pixels = np.asarray(image.convert("RGB"))
    halves = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert all((half.std(axis=2) > 20).any() for half in halves)  # a coloured curve in each


def test_chosen_metrics_are_compared_in_their_order_and_no_others(tmp_path):
    runs = tuple(make_run(tmp_path / f"{seed}", seed=seed, top1=(0.1, 0.2)) for seed in range(2))
    [line, *_] = compare(
        CompareConfig(runs=runs, metrics=("train/loss", "top1"), out=str(tmp_path / "both.png"))
    )
    assert line.index("loss in training") < line.index("validation top-1")
    [line, *_] = compare(CompareConfig(runs=runs, metrics=("top1",), out=str(tmp_path / "one.png")))
    assert line == "all (2 runs): validation top-1 20.00% ± 0.00%"
    with pytest.raises(
        UserError, match="--metrics mean_iou is nothing that every one of these runs has"
    ) as caught:
        compare(CompareConfig(runs=runs, metrics=("mean_iou",), out=str(tmp_path / "none.png")))
    assert caught.value.remedy == "they have top1, train/loss"


def test_over_an_option_the_last_values_stand_at_its_values_and_seeds_are_averaged(tmp_path):
    arms = [("scratch", 0.1), ("scratch", 1.0), ("beit", 1.0), ("beit", 0.1)]
    top1 = {("scratch", 0.1): 0.1, ("scratch", 1.0): 0.5, ("beit", 0.1): 0.3, ("beit", 1.0): 0.6}
    paths = {
        (name, fraction, seed): make_run(
            tmp_path / f"{name}-{fraction}-{seed}",
            seed=seed,
            data={"fraction": fraction},
            top1=(0.05, top1[name, fraction] + 0.02 * seed),
        )
        for name, fraction in arms
        for seed in range(2)
    }
    named = tuple(f"{name}={path}" for (name, _, _), path in paths.items())
    lines = compare(CompareConfig(runs=named, over="data.fraction", out=str(tmp_path / "out.png")))
    assert [line.split(", validation")[0].split(": validation")[0] for line in lines[:4]] == [
        "scratch, data.fraction 0.1 (2 runs)",
        "scratch, data.fraction 1 (2 runs)",
        "beit, data.fraction 0.1 (2 runs)",
        "beit, data.fraction 1 (2 runs)",
    ]
    assert [line.split("top-1 ")[1].split(",")[0] for line in lines[:4]] == [
        "11.00% ± 1.41%",
        "51.00% ± 1.41%",
        "31.00% ± 1.41%",
        "61.00% ± 1.41%",
    ]
    unnamed = [read_run(path) for (name, _, _), path in paths.items() if name == "beit"]
    assert [(one.name, len(one.runs)) for one in group(unnamed, "data.fraction")] == [("all", 4)]


@pytest.mark.parametrize(
    ("option", "cause"), [("optim.peak_rl", "perhaps you meant optim.peak_lr"), ("start", 'is "runs/x" in')]
)
def test_an_axis_that_is_no_number_is_refused(tmp_path, option, cause):
    with pytest.raises(UserError, match=cause):
        compare(
            CompareConfig(
                runs=(make_run(tmp_path / "a", start="runs/x"),), over=option, out=str(tmp_path / "out.png")
            )
        )


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda at: (make_run(at / "a"), make_run(at / "b", job="pretrain")), "different jobs"),
        (lambda at: (make_run(at / "a"), make_run(at / "b", losses=())), "no metric"),
        (lambda at: (str(at / "nothing"),), "is no run"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, make, cause):
    with pytest.raises(UserError, match=cause):
        compare(CompareConfig(runs=make(tmp_path), out=str(tmp_path / "out.png")))
    assert not (tmp_path / "out.png").exists()
