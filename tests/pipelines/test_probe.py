"""Probing a model: the job against features computed directly, and what reaches its table and report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from beit.classification.views import make_centre_view
from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.plain import override
from beit.pretraining.model import Beit
from beit.probing.features import pooled_features
from beit.probing.probe import Labelled, probe_knn, probe_linear
from beit.vit.checkpoints import save_model
from pipelines import probe as job
from pipelines.cluster.nodes import cluster_nodes
from pipelines.cluster.placement import place
from pipelines.config.pretrain import KnnWhileConfig, PretrainConfig
from pipelines.config.probe import ProbeConfig
from pipelines.config.resources import ResourceConfig
from pipelines.evaluation.knn import open_knn
from pipelines.evaluation.probe_table import read_table, table_lines
from pipelines.probe import probe, rebuild_report
from pipelines.runs import evaluations
from pipelines.runs.run_folder import RunFolder
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source
from pipelines.sources.labels import label_source, take_at_most
from pipelines.training.frame import judge_once

TINY = ModelConfig(image_size=32, patch_size=8, dim=24, depth=2, heads=2, drop_path=0.0)
VIEW = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A checkpoint, and two sets of scenes."""
    folder = tmp_path_factory.mktemp("given")
    save_model(Beit(TINY, 16, seed=1), folder / "model", extra={"view": VIEW})
    (folder / "model" / "progress.json").write_text(json.dumps({"step": 7, "seconds": 1.0, "files": {}}))
    write_scenes(folder / "train", images=60, seed=0, image_size=32, rows_per_group=16)
    write_scenes(folder / "val", images=25, seed=0, image_size=32, first=60, split="val", rows_per_group=16)
    return folder


def directly(model, manifest, layer, pooling):
    """Features and labels of a set, image by image, as float16."""
    view = ViewConfig(mean=tuple(VIEW["mean"]), std=tuple(VIEW["std"]))
    features, labels = [], []
    for unit, rows in enumerate(manifest.rows.tolist()):
        found = manifest.unit(unit).read(np.arange(rows), ("image", "label"))
        for image, label in zip(found["image"], found["label"], strict=True):
            pixels, _ = make_centre_view(image, view=view, image_size=32, share=1.0)
            with torch.inference_mode():
                one = pooled_features(
                    model, normalise(torch.from_numpy(pixels[None].copy()), view), (layer,), (pooling,)
                )
            features.append(one[layer, pooling][0].numpy().astype(np.float16))
            labels.append(label)
    return Labelled(np.stack(features), np.array(labels, np.int64))


def manifest_of(data):
    return open_source(str(data)).manifest


@pytest.mark.usefixtures("ray_cluster")
def test_a_probe_that_was_stopped_goes_on_and_judges_every_layer(given, tmp_path, monkeypatch, mlflow_file):
    mlflow_file(tmp_path / "mlflow.db")
    output = {"output.root": str(tmp_path), "output.name": "run", "start": str(given / "model")}
    data = {
        "data.train": str(given / "train"),
        "data.val": str(given / "val"),
        "linear.epochs": 5,
        "most_images": 40,
    }
    config = override(ProbeConfig(), {**output, **data})
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.probe.row_line", lambda row: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            probe(config, say=lines.append)
    run = str(tmp_path / "run")
    assert len(read_table(run)) == 1
    assert any(line.startswith("warning: 4") and "of 60 training images" in line for line in lines)

    def written():
        return {path: path.stat().st_mtime_ns for path in Path(run, "features", "trained").rglob("*.parquet")}

    files, seen, judge = written(), [], job.judge_features
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.probe.judge_features", lambda *arguments: seen.append(written()) or judge(*arguments)
        )
        result = probe(config, resume=run, say=lines.append)
    assert files
    assert seen[0] == files, "what was there is not computed again"
    assert not Path(run, "features").exists()

    assert [(row.weights, row.layer, row.pooling) for row in result.rows] == [
        (weights, layer, pooling)
        for weights in ("trained", "random")
        for layer in (1, 2)
        for pooling in ("mean", "cls")
    ]
    assert {row.val_images for row in result.rows} == {25}
    shown = list(table_lines(result.rows))
    assert len(shown) == 4
    report = Path(rebuild_report(run)).read_text()
    assert "Judge a pretraining by fine-tuning" in report
    assert f"{result.rows[0].knn_top1:.2%}" in report

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [logged] = client.search_runs([client.get_experiment_by_name("beit").experiment_id])
    assert (logged.info.status, logged.data.params["linear.epochs"]) == ("FINISHED", "5")
    for weights, pooling in (("trained", "mean"), ("random", "cls")):
        curve = client.get_metric_history(logged.info.run_id, f"{weights}_{pooling}/linear_top1")
        table = [
            (row.layer, row.linear_top1)
            for row in result.rows
            if (row.weights, row.pooling) == (weights, pooling)
        ]
        assert [(point.step, point.value) for point in curve] == table
    assert [file.path for file in client.list_artifacts(logged.info.run_id)] == ["probe.csv", "report"]

    # The same without Ray, on the training images that are taken.
    models = {"trained": load_model(given / "model"), "random": Beit(TINY, 1, seed=config.seed).eval()}
    taken = take_at_most(label_source(open_source(str(given / "train"))).manifest, 40, config.seed)
    for row in (row for row in result.rows if row.layer == 2):
        train, val = (
            directly(models[row.weights], manifest, row.layer, row.pooling)
            for manifest in (taken, manifest_of(given / "val"))
        )
        assert row.train_images == taken.total
        assert row.knn_top1 == pytest.approx(
            probe_knn(train, val, 10, config.knn).top1, abs=0.041
        )  # float16: a tie may go either way
        assert row.linear_top1 == pytest.approx(
            probe_linear(train, val, 10, config.linear, seed=0).top1, abs=0.041
        )


@pytest.mark.slow
def test_a_probe_killed_among_its_features_and_then_among_its_results_ends_with_the_table_of_one_that_was_not(
    run_beit, tmp_path
):
    save_model(Beit(replace(TINY, depth=4), 16, seed=1), tmp_path / "model", extra={"view": VIEW})
    write_scenes(tmp_path / "train", images=1300, seed=0, image_size=32)
    write_scenes(tmp_path / "val", images=100, seed=0, image_size=32, first=1300, split="val")
    given = [
        "probe",
        tmp_path / "model",
        "--data.train",
        tmp_path / "train",
        "--data.val",
        tmp_path / "val",
        "--linear.epochs",
        3,
    ]
    given += [
        "--output.root",
        tmp_path / "runs",
        "--output.no-mlflow",
        "--resources.cpus",
        2,
        "--output.name",
    ]
    run = tmp_path / "runs" / "killed"

    def features():
        return {path: path.stat().st_mtime_ns for path in run.glob("features/trained/*/parts/*.parquet")}

    run_beit(*given, "killed", until=features)
    first, table = features(), run / "probe.csv"
    assert not table.exists()
    run_beit("probe", "--resume", run, until=table.exists)
    assert first.items() <= features().items(), "features were computed again"
    judged = read_table(str(run))
    assert len(judged) < 16
    run_beit("probe", "--resume", run)

    run_beit(*given, "whole")
    ended, whole = (
        {(row.weights, row.layer, row.pooling): row for row in read_table(str(tmp_path / "runs" / name))}
        for name in ("killed", "whole")
    )
    assert len(whole) == 16
    assert ended == whole
    assert all(ended[row.weights, row.layer, row.pooling] == row for row in judged)
    assert not (run / "features").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_neighbours_while_pretraining_are_judged_once_a_step_and_leave_no_features(
    given, tmp_path, monkeypatch
):
    knn = KnnWhileConfig(every_steps=5, train=str(given / "train"), val=str(given / "val"))
    lines = []
    judge = open_knn(PretrainConfig(model=TINY, knn=knn), total_steps=15, say=lines.append)
    assert judge.layers == (2,)  # Of two blocks the second is the middle one and the last.
    folder, placement = RunFolder(str(tmp_path), 1), place(ResourceConfig(), cluster_nodes(), tokenize=False)
    assert list(judge.pauses) == [5, 10]
    figures = judge_once(judge, folder, str(given / "model"), placement, None, lines.append)
    train, val = (
        directly(load_model(given / "model"), manifest_of(given / name), 2, "mean")
        for name in ("train", "val")
    )
    assert figures["knn/layer_2"] == pytest.approx(probe_knn(train, val, 10, knn).top1, abs=0.041)
    assert [one["step"] for one in evaluations.read(str(tmp_path), "knn")] == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["knn"]

    monkeypatch.setattr("pipelines.evaluation.knn.extract", None)
    assert judge_once(judge, folder, str(given / "model"), placement, None, lines.append) == figures
    assert sum(line.startswith("k-NN at step 7") for line in lines) == 1


def test_neighbours_need_something_to_be_judged_by(given):
    assert open_knn(PretrainConfig(model=TINY), total_steps=15, say=print) is None
    with pytest.raises(UserError, match=r"knn\.val is not given"):
        open_knn(
            PretrainConfig(model=TINY, knn=KnnWhileConfig(every_steps=5, train=str(given / "train"))),
            total_steps=15,
            say=print,
        )
