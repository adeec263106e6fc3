import json

import pytest

from beit.config import ModelConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.vit.checkpoints import save_model
from pipelines.cli import main
from pipelines.runs import checkpoints, models
from pipelines.runs.checkpoints import PROGRESS_FILE
from pipelines.runs.models import MODEL_FILES, find_model, find_tokenizer, holds_model, keep_model


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_run_stands_for_the_model_and_the_tokenizer_in_it(tmp_path):
    touch(
        *(tmp_path / "run" / "model" / name for name in ("model.safetensors", "config.json")),
        tmp_path / "run" / "config.json",
    )
    touch(tmp_path / "trained" / "tokenizer" / "tokenizer.json")
    assert (
        find_model(str(tmp_path / "run"))
        == find_model(str(tmp_path / "run" / "model"))
        == str(tmp_path / "run" / "model")
    )
    inner = str(tmp_path / "trained" / "tokenizer")
    assert find_tokenizer(str(tmp_path / "trained")) == find_tokenizer(inner) == inner


@pytest.mark.parametrize(
    "command",
    [
        "finetune MODEL quickstart",
        "segment MODEL quickstart",
        "probe MODEL",
        "features MODEL DATA OUT",
        "attention MODEL IMAGE",
    ],
)
def test_no_command_guesses_how_a_model_wants_its_pixels(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(
        Beit(ModelConfig(image_size=32, patch_size=8, dim=8, depth=1, heads=2), 3),
        tmp_path / "MODEL",
        extra={"steps": 9},
    )
    with pytest.raises(SystemExit) as exit:
        main(command.split())
    assert (exit.value.code, capsys.readouterr().err.splitlines()[0]) == (
        2,
        "error: MODEL: its config.json does not say how pixels were normalised",
    )


def test_of_a_run_that_was_gone_on_with_the_newer_weights_are_taken(tmp_path):
    def checkpoint(step):
        folder = tmp_path / "attempt-1" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for name in MODEL_FILES:
            (folder / name).write_text(f"{name} of {step}")
        files = {name: (folder / name).stat().st_size for name in MODEL_FILES}
        (folder / PROGRESS_FILE).write_text(json.dumps({"step": step, "seconds": 1.0, "files": files}))
        return str(folder)

    run = str(tmp_path)
    keep_model(checkpoint(10), run)
    assert find_model(run) == str(tmp_path / "model")
    newer = checkpoint(20)
    assert find_model(run) == newer
    keep_model(newer, run)
    assert find_model(run) == str(tmp_path / "model")


def test_a_run_that_has_no_checkpoint_yet_is_told_from_a_folder_that_is_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "run" / "environment.json")
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"job": "finetune", "preset": "x", "inputs": {}, "config": {}})
    )
    with pytest.raises(
        UserError, match=r"^run has no checkpoint yet\ncontinue it by beit finetune --resume run"
    ):
        find_model("run")


def test_a_folder_without_a_model_is_named_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "run" / "config.json")
    with pytest.raises(UserError, match=r"^run holds no model"):
        find_model("run")
    touch(tmp_path / "run" / "model" / "model.safetensors")  # A copy that was interrupted.
    assert not holds_model(str(tmp_path / "run" / "model"))
    touch(tmp_path / "run" / "model" / "config.json")
    assert holds_model(find_model("run"))


def test_a_kept_model_has_digests_and_damage_is_found_before_it_is_used(tmp_path):
    checkpoint, run = tmp_path / "run" / "attempt-1" / "step-00000005", tmp_path / "run"
    checkpoint.mkdir(parents=True)
    save_model(Beit(ModelConfig(image_size=32, patch_size=8, dim=16, depth=1, heads=2), 8), checkpoint)
    checkpoints.seal(checkpoint, step=5, seconds=1.0)
    models.keep_model(str(checkpoint), str(run))
    with models.model_files(str(run / "model")) as folder:
        load_model(folder)
    for folder in (run / "model", checkpoint):
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        with (
            pytest.raises(UserError, match=r"model\.safetensors is not what was written"),
            models.model_files(str(folder)),
        ):
            pass
    with pytest.raises(UserError, match="--resume"):
        models.keep_model(str(checkpoint), str(run))
