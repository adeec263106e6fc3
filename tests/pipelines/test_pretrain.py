"""The whole jobs, small: from shards to a tokenizer, to a model, to a report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from beit.images.pixels import normalise
from beit.loading import load_model
from beit.plain import override
from beit.tokenizer.registry import load_tokenizer
from pipelines.config.pretrain import PretrainConfig
from pipelines.evaluation.knn import KnnJudge
from pipelines.presets import pretrain as presets
from pipelines.presets.tokenizer import scenes64
from pipelines.pretrain import PretrainTask, pretrain
from pipelines.runs import checkpoints, evaluations, run_folder
from pipelines.runs.metrics import read_metrics
from pipelines.scenes.shards import write_scenes
from pipelines.stream.ledger import Ledger
from pipelines.stream.samples import draw_unseen
from pipelines.tools.weights import ExportConfig, export_weights
from pipelines.train_tokenizer import rebuild_report as rebuild_tokenizer_report
from pipelines.train_tokenizer import train_tokenizer

TASK = PretrainTask()

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, images=96, seed=0, rows_per_group=16)
    return str(folder)


def test_a_run_stopped_half_way_goes_on_to_its_end_and_leaves_a_model_and_a_report(
    scenes, tmp_path, mlflow_file
):
    mlflow_file(tmp_path / "mlflow.db")
    values = {
        "data.train": scenes,
        "epochs": 2,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 2,
        "output.root": str(tmp_path),
    }
    config = override(presets.quickstart(), {**values, "output.name": "run", "stop_at": 5})
    lines = []
    first = pretrain(config, say=lines.append)
    assert first.step == 5
    assert next(number for number, line in enumerate(lines) if line.startswith("step ")) <= 25
    assert Ledger.from_bytes(Path(first.checkpoint, "ledger.npz").read_bytes()).settled == 80

    result = pretrain(override(config, {"stop_at": None}), resume=str(tmp_path / "run"), say=lines.append)
    assert "resumed: continuing from step 5" in lines
    assert result.step == 12
    assert checkpoints.latest_checkpoint(result.run) == result.checkpoint
    ledger = Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes())
    assert (ledger.settled, ledger.complete, ledger.quarantined) == (192, 2, 0)

    rows = read_metrics(result.run)
    assert [rows[0]["step"], rows[-1]["step"]] == [1, 12]
    assert rows[0]["train/loss"] == pytest.approx(np.log(512), abs=0.3)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["train/hidden"] == pytest.approx(24 / 64, abs=0.03)

    model = load_model(Path(result.run, "model"))
    logits = model(torch.zeros(1, 3, 64, 64), torch.eye(1, 64, dtype=torch.bool))
    assert logits.shape == (1, 512)
    report = Path(result.run, "report", "index.html").read_text()
    assert "What the model fills in" in report
    assert "What patches attend to" in report
    assert f"beit pretrain --resume {result.run}" in report
    assert_hugging_face_predicts_the_same(result.run, tmp_path / "hf")


def assert_hugging_face_predicts_the_same(run, out):
    """The run's model, exported, has the same logits for the hidden patches of scenes there, and the same
    tokens are the largest.
    """
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed, nothing to compare with"
    )
    list(export_weights(ExportConfig(run=run, out=str(out), format="hf")))
    theirs, ours = (
        transformers.BeitForMaskedImageModeling.from_pretrained(out).eval(),
        load_model(Path(run, "model")),
    )
    samples = TASK.prepare(
        run_folder.saved_config(run, PretrainConfig, job="pretrain")[0],
        preset="quickstart",
        say=lambda line: None,
    )
    batch = draw_unseen(samples.source.manifest, samples.samples, 8)
    pixels, mask = (
        normalise(torch.from_numpy(batch["patch_view"]), samples.config.view),
        torch.from_numpy(batch["mask"]),
    )
    with torch.no_grad():
        expected = theirs(pixels, bool_masked_pos=mask).logits[mask]
        logits = ours(pixels, mask)
    assert len(logits) > 100
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.slow
def test_neighbours_judge_a_pretraining_at_its_pauses_and_none_again_after_an_interruption(
    scenes, tmp_path, monkeypatch
):
    values = {
        "data.train": scenes,
        "epochs": 2,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 2,
        "output.root": str(tmp_path),
    }
    values |= {
        "knn.every_steps": 4,
        "knn.train": scenes,
        "knn.val": scenes,
        "evaluation.images": 0,
        "output.name": "run",
    }
    config, lines, judge = override(presets.quickstart(), values), [], KnnJudge.judge

    def interrupted(sets, folder, checkpoint, placement, step):
        if step == 8:
            raise KeyboardInterrupt
        return judge(sets, folder, checkpoint, placement, step)

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.evaluation.knn.KnnJudge.judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, say=lines.append)
    result = pretrain(config, resume=str(tmp_path / "run"), say=lines.append)
    assert [int(line.split()[3].rstrip(":")) for line in lines if line.startswith("k-NN at step")] == [
        4,
        8,
        12,
    ]
    figures = {row["step"]: row["top1"]["4"] for row in evaluations.read(result.run, "knn")}
    assert sorted(figures) == [4, 8, 12]
    assert result.metrics["knn/layer_4"] == figures[12]
    assert Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes()).settled == 192


def test_a_trained_tokenizer_is_a_folder_that_pretraining_can_load(scenes, tmp_path):
    values = {
        "data.train": scenes,
        "steps": 3,
        "optim.global_batch_size": 8,
        "output.root": str(tmp_path),
        "output.mlflow": False,
    }
    small = {"dvae.vocab_size": 64, "dvae.encoder_width": 8, "dvae.decoder_width": 8, "optim.warmup_steps": 1}
    trained = train_tokenizer(
        override(scenes64(), {**values, **small, "output.name": "tokenizer"}), say=lambda line: None
    )
    folder = str(Path(trained.run, "tokenizer"))
    assert load_tokenizer(folder).vocab_size == 64
    described = json.loads(Path(folder, "tokenizer.json").read_text())
    assert described["training"]["steps"] == 3
    report = Path(rebuild_tokenizer_report(trained.run)).read_text()
    for section in (
        "Originals and reconstructions",
        "What single tokens look like",
        "in 96 views that no step has seen",
    ):
        assert section in report
    assert f"{described['figures']['error']:.3f} of 1" in report
