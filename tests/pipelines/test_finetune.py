"""The whole job, small: from a pretrained checkpoint to a classifier that is evaluated on every image
once.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from beit.classification.model import Classifier
from beit.classification.views import make_centre_view
from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.plain import from_dict, override
from beit.pretraining.model import Beit
from beit.vit.checkpoints import read_config, save_model
from pipelines.cli import main
from pipelines.config.supervised import FinetuneConfig
from pipelines.finetune import ClassificationTask, finetune, rebuild_report
from pipelines.presets.finetune import PRESETS, recipe_for
from pipelines.runs import evaluations, run_folder
from pipelines.runs.models import keep_model
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source
from pipelines.sources.labels import label_source
from pipelines.stream.ledger import Ledger
from pipelines.training.task import Finished

TASK = ClassificationTask()

TINY = ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2, drop_path=0.0, position="relative")


@pytest.fixture
def pretrained(tmp_path):
    save_model(
        Beit(TINY, 16, seed=1), tmp_path / "pretrained", extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    )
    return str(tmp_path / "pretrained")


def break_images(path, rows):
    table = pq.read_table(path)
    columns = table.to_pydict()
    for row in rows:
        columns["image"][row]["bytes"] = columns["image"][row]["bytes"][:60]
    broken = pa.Table.from_pydict(columns, table.schema)
    pq.write_table(broken, path, row_group_size=8)


def test_a_recipe_takes_model_and_pixels_from_the_run_and_all_else_from_the_preset(pretrained):
    config = TASK.config_for(pretrained, "tiny64")
    assert (config.model.dim, config.model.position, config.model.drop_path) == (
        32,
        "relative-per-block",
        0.1,
    )
    assert (config.view.mean, config.view.min_area, config.view.jitter) == ((0.5, 0.5, 0.5), 0.2, 0.0)
    assert config.layer_decay == PRESETS["tiny64"]().layer_decay
    assert recipe_for(ModelConfig(dim=1024, depth=24, heads=16), "mim") == "large"
    assert recipe_for(ModelConfig(), "classifier") == "base-after-22k"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_classifier_goes_on_at_a_higher_resolution_with_the_head_and_the_pooling_that_it_has(
    pooling, tmp_path
):
    low = Classifier(
        replace(TINY, position="absolute"), 10, pooling=pooling, generator=torch.Generator().manual_seed(0)
    )
    save_model(low, tmp_path / "low", extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    config = TASK.config_for(str(tmp_path / "low"), "base-384")
    assert (config.pooling, config.model.image_size) == (pooling, 384)
    config = override(
        config, {"output.root": str(tmp_path / "runs"), "data.scenes": 20, "data.val_scenes": 10, "steps": 1}
    )
    transfer = TASK.prepare(override(config, {"model.image_size": 64}), preset="test", say=print).transfer
    assert (transfer.fresh, transfer.dropped, transfer.resampled) == ([], {}, ["pos_embed"])


def test_every_preset_survives_its_file():
    from beit.plain import to_dict

    for preset in PRESETS.values():
        assert from_dict(FinetuneConfig, json.loads(json.dumps(to_dict(preset())))) == preset()


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_takes_a_step_with_a_small_model(name, tmp_path):
    write_scenes(str(tmp_path / "train"), images=12, seed=0, image_size=64)
    small = {
        "model.dim": 24,
        "model.depth": 1,
        "model.heads": 2,
        "model.image_size": 64,
        "optim.global_batch_size": 4,
        "steps": 20_000,
    }
    config = override(PRESETS[name](), {**small, "data.train": str(tmp_path / "train")})
    training = TASK.prepare(config, preset=name, say=print)
    keys = {"epoch": np.zeros(12, int), "unit": np.zeros(12, int), "row": np.arange(12)}
    batch = training.samples.make({**training.source.unit(0).read(np.arange(12), ("image", "label")), **keys})
    objective = training.make_objective()
    objective.start_step(5)
    loss = objective({column: torch.from_numpy(batch[column]) for column in objective.columns})[
        "loss"
    ] / objective.weight(batch)
    loss.backward()
    assert abs(loss.item() - np.log(10)) < 0.5
    optimizer = objective.optimizer()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(objective.model.parameters())
    )
    optimizer.step()


def test_the_warmup_is_counted_in_epochs_or_in_steps_and_a_run_says_which_steps_these_are(tmp_path):
    write_scenes(str(tmp_path / "train"), images=40, seed=0, image_size=64)
    values = {
        "data.train": str(tmp_path / "train"),
        "optim.global_batch_size": 8,
        "output.root": str(tmp_path / "runs"),
    }
    config = override(PRESETS["tiny64"](), values)

    def warmup_of(config):
        training = TASK.prepare(config, preset="test", say=print)
        assert training.make_objective().optim_config == training.config.optim
        return training.config.warmup_epochs, training.config.optim.warmup_steps, training.total_steps

    assert warmup_of(config) == (None, 5, 100), "1 of 20 epochs"
    assert warmup_of(override(config, {"steps": 40})) == (None, 2, 40)
    in_steps = {"warmup_epochs": None, "optim.warmup_steps": 7}
    assert warmup_of(override(config, in_steps)) == (None, 7, 100)
    assert "warmup: 7 steps x 8 images = 1.4 epochs" in TASK.summary(
        TASK.prepare(override(config, in_steps), preset="test", say=print)
    )
    with pytest.raises(
        UserError,
        match=r"--warmup-epochs 1 and --optim.warmup-steps 7 both say.*\n.*add --warmup-epochs None",
    ):
        override(config, {"optim.warmup_steps": 7})
    with pytest.raises(UserError, match="neither in epochs nor in steps"):
        override(config, {"warmup_epochs": None})
    with pytest.raises(
        UserError, match=r"--warmup-epochs 1 takes all of --epochs 1: .*\nset --warmup-epochs 0.05"
    ):
        warmup_of(override(config, {"epochs": 1}))
    assert warmup_of(override(config, {"epochs": 1, "warmup_epochs": 0.2})) == (None, 1, 5)
    with pytest.raises(UserError, match=r"optim.warmup_steps=100 takes all of the run's 100 steps"):
        warmup_of(override(config, {**in_steps, "optim.warmup_steps": 100}))


def test_a_folder_without_a_model_is_told_so(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        TASK.config_for(str(tmp_path), "base")


def test_a_run_that_starts_from_a_checkpoint_of_a_running_training_does_not_need_it_any_more(
    pretrained, tmp_path
):
    write_scenes(str(tmp_path / "train"), images=16, seed=0, image_size=32, rows_per_group=8)
    values = {"data.train": str(tmp_path / "train"), "steps": 2, "output.root": str(tmp_path / "runs")}
    config, lines = override(TASK.config_for(pretrained, "quickstart"), values), []
    assert TASK.prepare(config, preset="test", say=lines.append).config.start == pretrained
    Path(pretrained, "progress.json").write_text(json.dumps({"step": 7, "seconds": 1.0, "files": {}}))
    training = TASK.prepare(config, preset="test", say=lines.append)
    assert sum(line.startswith("start: a copy of ") for line in lines) == 1
    first = training.make_objective().model.state_dict()
    shutil.rmtree(pretrained)
    again = TASK.prepare(training.config, preset="test", say=lines.append)
    assert all(
        torch.equal(first[name], tensor) for name, tensor in again.make_objective().model.state_dict().items()
    )
    assert again.inputs == training.inputs


def test_a_run_that_starts_from_a_run_keeps_its_weights_while_that_one_goes_on(pretrained, tmp_path):
    keep_model(pretrained, str(tmp_path / "earlier"))
    (tmp_path / "earlier" / "model" / "step.json").write_text('{"step": 7}')
    output = {"output.root": str(tmp_path / "runs"), "data.scenes": 16, "data.val_scenes": 8, "steps": 1}
    config = override(TASK.config_for(str(tmp_path / "earlier"), "quickstart"), output)
    training = TASK.prepare(config, preset="test", say=print)
    assert training.config.start.startswith(f"{tmp_path}/runs/starts/earlier-step-7-")
    save_model(
        Beit(TINY, 16, seed=2),
        tmp_path / "earlier" / "model",
        extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    )
    assert TASK.prepare(training.config, preset="test", say=print).inputs == training.inputs
    assert TASK.prepare(config, preset="test", say=print).inputs != training.inputs


def test_the_configuration_of_a_run_begins_with_another_model_where_one_is_named(
    pretrained, tmp_path, capsys
):
    other = {"mean": [0.25] * 3, "std": [0.5] * 3}
    save_model(
        Classifier(TINY, 10, pooling="cls", generator=torch.Generator().manual_seed(0)),
        tmp_path / "other",
        extra={"view": other},
    )
    config = override(
        TASK.config_for(pretrained, "quickstart"),
        {"output.root": str(tmp_path), "output.name": "earlier", "layer_decay": 0.5},
    )
    run_folder.create(config, job="finetune", preset="quickstart")
    main(["finetune", str(tmp_path / "other"), str(tmp_path / "earlier" / "config.json"), "--dry-run"])
    begun = from_dict(FinetuneConfig, json.loads(capsys.readouterr().out))
    assert (begun.start, begun.layer_decay, begun.pooling) == (str(tmp_path / "other"), 0.5, "cls")
    assert begun.view.mean == (0.25, 0.25, 0.25)
    with pytest.raises(SystemExit):
        main(["finetune", str(tmp_path / "other"), "--resume", str(tmp_path / "earlier")])
    assert f"{tmp_path}/other and --resume" in capsys.readouterr().err


def test_other_pixels_than_those_of_the_weights_are_warned_of(pretrained, tmp_path):
    output = {"output.root": str(tmp_path), "data.scenes": 16, "data.val_scenes": 8, "steps": 1}
    for mean, warnings in (((0.5, 0.5, 0.5), 0), ((0.4, 0.5, 0.5), 1)):
        lines = []
        TASK.prepare(
            override(TASK.config_for(pretrained, "quickstart"), {**output, "view.mean": mean}),
            preset="test",
            say=lines.append,
        )
        assert (
            sum("give --view.mean 0.5 0.5 0.5 --view.std 0.5 0.5 0.5" in line for line in lines) == warnings
        )


def test_a_model_is_judged_after_so_many_epochs(pretrained, tmp_path):
    values = {"data.scenes": 40, "data.val_scenes": 8, "epochs": 4, "optim.global_batch_size": 8}
    output = {"output.root": str(tmp_path), "output.name": "run"}
    config = override(TASK.config_for(pretrained, "quickstart"), {**values, **output, "model.image_size": 64})
    for epochs, pauses in ((1.5, [8, 16]), (2, [10]), (4, []), (None, [])):
        training = TASK.prepare(override(config, {"evaluate_epochs": epochs}), preset="test", say=print)
        assert (training.total_steps, list(TASK.make_judge(training, print).pauses)) == (20, pauses)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_judged_on_every_image_once(pretrained, tmp_path):
    train, val = str(tmp_path / "train"), str(tmp_path / "val")
    write_scenes(train, images=64, seed=0, image_size=32, rows_per_group=8)
    [shard] = write_scenes(val, images=37, seed=0, image_size=32, first=64, split="val", rows_per_group=8)
    break_images(shard, [11])
    values = {
        "data.train": train,
        "data.val": val,
        "data.fraction": 0.5,
        "epochs": 2,
        "evaluate_epochs": None,
        "optim.global_batch_size": 8,
    }
    output = {"output.root": str(tmp_path / "runs"), "output.name": "run", "output.mlflow": False}
    config = override(TASK.config_for(pretrained, "quickstart"), {**values, **output})
    lines = []
    result = finetune(config, say=lines.append)

    ledger = Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes())
    images = int(ledger.rows.sum())
    assert 27 <= images <= 37  # half of the images of each class
    assert (result.step, ledger.settled) == (2 * images // 8, 2 * images // 8 * 8)
    assert any(line.startswith("fresh: fc_norm") for line in lines)

    # The same without Ray.
    folder = Path(result.run, "model")
    model, view = load_model(folder, Classifier), from_dict(ViewConfig, read_config(folder).extra["view"])
    manifest = label_source(open_source(val)).manifest
    right, count = [], 0
    for unit, rows in enumerate(manifest.rows.tolist()):
        found = manifest.unit(unit).read(np.arange(rows), ("image", "label"))
        for image, label in zip(found["image"], found["label"], strict=True):
            pixels, status = make_centre_view(image, view=view, image_size=32, share=1.0)
            if status == 0:
                with torch.inference_mode():
                    right.append(
                        int(model(normalise(torch.from_numpy(pixels[None].copy()), view)).argmax()) == label
                    )
            count += 1
    [last] = evaluations.read(result.run, "validation")
    assert last["step"] == result.step
    assert (count, last["images"], len(last["unusable"])) == (37, 36, 1)
    assert "row group 1, row 3" in last["unusable"][0][0]
    assert last["top1"] == pytest.approx(np.mean(right))
    assert sum(images for _, _, images in last["confusion"]) == 36
    assert sum(images for label, predicted, images in last["confusion"] if label == predicted) == sum(right)
    report = Path(result.run, "report", "index.html").read_text()
    assert "Confusion matrix" in report
    assert "What patches attend to" in report
    saved, preset = run_folder.saved_config(result.run, FinetuneConfig, job="finetune")

    def note():
        """What the report says in place of the picture."""
        made = TASK.report(Finished(config=saved, preset=preset, run=result.run, training=None))
        assert not made.pictures
        return made.sections[-1].html()

    break_images(shard, range(37))
    assert "none of the images that were looked at can be decoded" in note()
    Path(shard).write_bytes(Path(shard).read_bytes()[:200])
    assert "Warning: no picture of what patches attend to" in note(), "a shard that is cut off"
    Path(val).rename(tmp_path / "gone")
    assert "Warning: no picture of what patches attend to" in note()
    for checkpoints in Path(result.run).glob("attempt-*"):
        shutil.rmtree(checkpoints)  # The model is enough for the report.
    report = Path(rebuild_report(result.run)).read_text()
    assert "Warning: no picture of what patches attend to" in report
    assert "Confusion matrix" in report
