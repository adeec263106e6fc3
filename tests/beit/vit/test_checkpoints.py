"""Saving and loading a model's folder, and the messages for folders that hold no model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.config import ModelConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.vit.checkpoints import load_weights, read_config, save_model

CONFIG = ModelConfig(image_size=32, dim=8, depth=2, heads=2, position="relative", layer_scale=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(Beit(CONFIG, 16, seed=3), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_model_comes_back_bit_for_bit_with_its_config(tmp_path):
    model = Beit(CONFIG, 16, seed=3)
    extra = {"tokenizer": {"name": "scenes64", "digest": "ab12"}, "view": {"mean": [0.5, 0.5, 0.5]}}
    save_model(model, tmp_path / "new" / "checkpoint", extra=extra)
    loaded = load_model(tmp_path / "new" / "checkpoint")
    assert loaded.config == CONFIG
    assert not loaded.training
    saved = read_config(tmp_path / "new" / "checkpoint")
    assert (saved.kind, saved.head, saved.extra) == ("mim", {"vocab_size": 16, "target": "tokens"}, extra)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loaded_model_predicts_what_the_saved_one_did(folder):
    pixels, mask = (
        torch.randn(2, 3, 32, 32),
        torch.tensor([[True, False, True, False], [False, True, False, False]]),
    )
    assert torch.equal(load_model(folder)(pixels, mask), Beit(CONFIG, 16, seed=3).eval()(pixels, mask))


def test_saving_again_replaces_and_leaves_nothing_else(folder):
    save_model(Beit(CONFIG, 16, seed=4), folder)
    assert torch.equal(load_model(folder).lm_head.weight, Beit(CONFIG, 16, seed=4).lm_head.weight)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}


def test_a_save_that_fails_keeps_the_old_checkpoint(folder, monkeypatch):
    def full_disk(_tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("beit.vit.checkpoints.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(Beit(CONFIG, 16, seed=4), folder)
    assert torch.equal(load_model(folder).lm_head.weight, Beit(CONFIG, 16, seed=3).lm_head.weight)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it has no config.json"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "is not a checkpoint: it has no model.safetensors",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "its config.json is not JSON"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model": {}, "data": {}})),
            "its config.json describes something else",
        ),
        (lambda folder: edit_config(folder, kind="detector"), "holds a detector, which is none of mim"),
        (
            lambda folder: edit_config(folder, head={"classes": 3}),
            "the head in its config.json is not one of a mim",
        ),
        (cut_short, "model.safetensors is damaged or cut short"),
        (
            lambda folder: edit_tensors(folder, lambda tensors: tensors.pop("norm.weight")),
            "norm.weight is missing",
        ),
        (
            lambda folder: edit_tensors(folder, lambda tensors: tensors.update(more=torch.zeros(1))),
            "more is not part of the model",
        ),
        (
            lambda folder: edit_tensors(
                folder, lambda tensors: tensors.update(cls_token=torch.zeros(1, 1, 9))
            ),
            r"cls_token has shape \[1, 1, 9\] instead of \[1, 1, 8\]",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        load_model(folder)
    assert str(folder) in raised.value.cause
    assert "\n" not in raised.value.cause


def test_a_model_built_otherwise_is_not_filled(folder):
    other = Beit(
        ModelConfig(image_size=32, dim=8, depth=2, heads=4, position="relative", layer_scale=0.1), 16, seed=0
    )
    before = other.lm_head.weight.clone()
    with pytest.raises(UserError, match="heads is 2 there and 4 here"):
        load_weights(other, folder)
    assert torch.equal(other.lm_head.weight, before)
    alike = Beit(
        ModelConfig(
            image_size=32, dim=8, depth=2, heads=2, position="relative", layer_scale=0.1, drop_path=0.3
        ),
        16,
        seed=0,
    )
    load_weights(alike, folder)
    assert torch.equal(alike.lm_head.weight, load_model(folder).lm_head.weight)
