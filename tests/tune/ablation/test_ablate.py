"""A whole small ablation with Ray Tune, then one that was killed and is resumed. Mistakes are refused before
Ray starts.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from beit.errors import UserError
from beit.plain import override
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.supervised import SegmentConfig
from pipelines.runs import run_folder
from pipelines.runs.metrics import read_metrics
from pipelines.runs.models import model_digest
from tune.ablation.ablate import ablate
from tune.ablation.chain import JOB_FILE
from tune.ablation.config import AblationConfig, ablation_preset
from tune.ablation.prepare import prepare

SMALL = {
    "rows": ["beit", "pixels"],
    "seeds": 1,
    "steps": 6,
    "data.scenes": 96,
    "optim.global_batch_size": 16,
    "optim.warmup_steps": 2,
    "model.dim": 32,
    "model.depth": 2,
    "classify.steps": 4,
    "classify.fraction": 0.8,
    "classify.val_scenes": 200,
    "segment.val_scenes": 100,
    "segment.steps": 4,
    "output.name": "mine",
}


def small(tmp_path, **values):
    return override(ablation_preset("quickstart"), {**SMALL, "output.root": str(tmp_path / "runs"), **values})


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("ray_cluster")
def test_an_ablation_ends_with_a_table_and_one_that_was_killed_does_only_what_is_left(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines: list[str] = []
    # One of the two tasks: test_chain.py says what each is.
    result = ablate(
        small(tmp_path, **{"tasks": ["segment"], "segment.val_scenes": 24}),
        preset="quickstart",
        say=lines.append,
    )
    assert [(line.row, sorted(line.results), line.missing) for line in result.table.lines] == [
        ("beit", ["segment"], ()),
        ("pixels", ["segment"], ()),
    ]
    rows = list(csv.DictReader(io.StringIO(Path(result.folder, "rows.csv").read_text())))
    judged = json.loads(
        Path(result.folder, "pixels-seed0-segment", "validation", "step-00000004.json").read_text()
    )
    assert float(rows[1]["segment_seed0"]) == pytest.approx(100 * judged["mean_iou"], abs=1e-4)
    assert (rows[1]["row"], rows[1]["segment_paper"]) == ("pixels", "41.3800")
    assert "in the paper's order" in Path(result.folder, "table.md").read_text()
    assert Path(result.report).exists()

    # One tokenising for the row that predicts tokens; both rows fine-tuned from what they had learned, with
    # the same seed.
    assert [line for line in lines if line.startswith("tokens, seed 0: 96 views, 96 of them tokenised now")]
    for row, tokens in (("beit", True), ("pixels", False)):
        saved, _ = run_folder.saved_config(
            f"{result.folder}/{row}-seed0-pretrain", PretrainConfig, job="pretrain"
        )
        assert (saved.data.tokens is not None) == tokens
        tuned, _ = run_folder.saved_config(
            f"{result.folder}/{row}-seed0-segment", SegmentConfig, job="segment"
        )
        assert tuned.start.startswith(f"{result.folder}/starts/{row}-seed0-pretrain-step-6-")
        assert (tuned.model.dim, tuned.seed) == (32, 0)
        assert model_digest(tuned.start) == model_digest(f"{result.folder}/{row}-seed0-pretrain/model")
    names = [f"{row}-seed0-{job}" for row in ("beit", "pixels") for job in ("pretrain", "segment")]
    ended = {"mine": "FINISHED", **dict.fromkeys(names, "FINISHED")}
    assert states(tmp_path) == ended
    assert metrics_of_parent(tmp_path)["pixels/segment"] == pytest.approx(100 * judged["mean_iou"])

    # What kill -9 leaves in the middle of the last row's segmentation.
    Path(result.folder, "pixels-seed0-segment", JOB_FILE).write_text('{"status": "running", "error": ""}')
    before = {name: Path(result.folder, name, "metrics.jsonl").stat().st_mtime_ns for name in names}
    saved, preset = run_folder.saved_config(result.folder, AblationConfig, job="ablate")
    lines.clear()
    again = ablate(saved, preset=preset, resume=result.folder, say=lines.append)
    assert "resumed: finished: beit-seed0; to resume: pixels-seed0 (segment)" in lines
    for name in names[:3]:
        assert Path(result.folder, name, "metrics.jsonl").stat().st_mtime_ns == before[name], (
            f"{name} ran again"
        )
    assert Path(result.folder, "pixels-seed0-segment", "attempt-2").exists()
    steps = [row["step"] for row in read_metrics(f"{result.folder}/pixels-seed0-segment")]
    assert steps == sorted(set(steps))
    assert again.table == result.table
    assert states(tmp_path) == ended


def runs_in_mlflow(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("beit")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def states(tmp_path):
    """The states of all MLflow runs, which must be children of the ablation."""
    found = runs_in_mlflow(tmp_path)
    parent = found["mine"].info.run_id
    assert all(run.data.tags["mlflow.parentRunId"] == parent for name, run in found.items() if name != "mine")
    return {name: run.info.status for name, run in found.items()}


def metrics_of_parent(tmp_path):
    return runs_in_mlflow(tmp_path)["mine"].data.metrics


def test_what_cannot_be_scheduled_is_refused_before_ray_starts_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.session.start", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = small(tmp_path, **{"resources.cpus": 2, "resources.worker_cpus": 4.0})
    with pytest.raises(UserError) as raised:
        ablate(config, preset="quickstart")
    assert raised.value.cause.startswith("1 worker x 4 CPU: there is room for 0 on 1 machine x 2 CPU")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "cause", "remedy"),
    [
        ({"rows": ["longer", "beit"]}, "leaves out pixels", "set --rows beit pixels longer"),
        ({"seeds": 1}, "--seeds 1 is less", "--seeds 2"),
    ],
)
def test_one_that_goes_on_keeps_its_rows_and_seeds(tmp_path, values, cause, remedy):
    config = small(tmp_path, seeds=2)
    folder = run_folder.create(config, job="ablate", preset="quickstart").uri
    with pytest.raises(UserError) as raised:
        ablate(override(config, values), resume=folder)
    assert cause in raised.value.cause
    assert remedy in raised.value.remedy


def test_every_row_learns_from_the_same_scenes_and_is_judged_by_the_same_others(tmp_path):
    config = small(tmp_path)
    prepared = prepare(config, preset="quickstart", say=lambda line: None)
    found = prepared.config
    assert found.data.train == found.classify.train == found.segment.train
    assert found.classify.val.endswith("200-images-after-96-64px")
    assert found.segment.val.endswith("100-images-after-96-64px")
    assert prepared.steps == {"classify": 4, "segment": 4}
    assert (prepared.token_epochs, prepared.tokenises) == (1, False)
    assert prepare(found, preset="quickstart", say=print).config == found, "a resumed one finds the same"


def test_tokens_are_computed_once_only_where_no_view_comes_again(tmp_path):
    config = small(tmp_path, **{"rows": ["beit", "longer"], "steps": 18, "longer": 3.0, "tasks": ["segment"]})
    prepared = prepare(config, preset="quickstart", say=lambda line: None)
    assert prepared.token_epochs == 9, "54 steps of 16 are 9 epochs of 96"
    few = prepare(override(config, {"token_epochs": 8}), preset="quickstart", say=lambda line: None)
    assert (few.token_epochs, few.tokenises) == (0, True)


@pytest.mark.parametrize(
    ("values", "cause", "remedy"),
    [
        ({"data.train": "here"}, "classify.val is not given", "leave classify out of --tasks"),
        (
            {"data.train": "here", "classify.val": "there", "segment.val": "there"},
            "segment.train is not given",
            "--segment.train",
        ),
        ({"classify.recipe": "quickstrat"}, "quickstrat is neither", "perhaps you meant quickstart"),
        ({"classify.peak_lr": 1e-9}, "classify.peak_lr=1e-09 is below 1e-06", "--classify.peak-lr 0.002"),
        ({"mask.ratio": 0.04}, "the row beit: mask.ratio=0.04", "mask.min_block"),
        (
            {"model.image_size": 224, "model.patch_size": 28},
            "data.train is not given",
            "beit ablate quickstart",
        ),
    ],
)
def test_what_no_row_could_begin_with_is_refused_before_anything_is_computed(tmp_path, values, cause, remedy):
    with pytest.raises(UserError) as raised:
        prepare(small(tmp_path, **values), preset="quickstart", say=lambda line: None)
    assert cause in raised.value.cause
    assert remedy in raised.value.remedy


def test_images_with_annotations_in_a_folder_beside_them_can_be_segmented(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("train", "train-ids", "val", "val-ids"):
        (tmp_path / folder).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 11, (64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    values = {
        "tasks": ["segment"],
        "optim.global_batch_size": 4,
        "segment.recipe": "camvid",
        "data.train": str(tmp_path / "train"),
        "segment.annotations": str(tmp_path / "train-ids"),
        "segment.val": str(tmp_path / "val"),
        "segment.val_annotations": str(tmp_path / "val-ids"),
    }
    found = prepare(small(tmp_path, **values), preset="quickstart", say=lambda line: None).config
    assert found.segment.train == found.data.train
    assert found.segment.annotations == str(tmp_path / "train-ids")
