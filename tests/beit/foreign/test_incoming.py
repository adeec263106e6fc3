"""How files of weights are recognised, which tensors are left out, and which files are refused with which
message.
"""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from beit.classification.model import Classifier
from beit.errors import UserError
from beit.foreign.incoming import import_weights
from beit.loading import load_model
from beit.vit.backbone import Backbone
from beit.vit.checkpoints import read_config, save_model
from beit.vit.transfer import finetuning_config, start_from_folder


@pytest.fixture
def state(build) -> dict[str, Tensor]:
    return build("mim, released").state_dict()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_lies_beside_the_weights_is_passed_over(legacy, state, tmp_path: Path):
    args = argparse.Namespace(lr=1.5e-3, window_size=(14, 14), output_dir="x", none=None)
    content = {
        "model": state,
        "optimizer": {"state": {0: {"step": 5}}, "param_groups": []},
        "epoch": 7,
        "scaler": {"scale": 2.0},
        "args": args,
    }
    torch.save(content, tmp_path / "checkpoint-7.pth", _use_new_zipfile_serialization=not legacy)
    import_weights(tmp_path / "checkpoint-7.pth", tmp_path / "ours")
    read = load_model(tmp_path / "ours").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"module": s},
        lambda s: {f"module.{n}": t for n, t in s.items()},
        lambda s: {f"_orig_mod.module.{n}": t for n, t in s.items()},
    ],
)
def test_bare_and_wrapped_state_dicts_are_read(wrap, state, tmp_path: Path):
    torch.save(wrap(dict(state)), tmp_path / "file.pth")
    assert import_weights(tmp_path / "file.pth", tmp_path / "ours").report.read == len(state)


class Code:
    """Runs a command when it is unpickled in the usual way."""

    def __init__(self, function, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("which", ["system", "eval"])
def test_a_file_with_code_is_refused_without_running_it(which, legacy, state, tmp_path: Path):
    mark = tmp_path / "mark"
    code = (
        Code(os.system, f"touch {mark}")
        if which == "system"
        else Code(eval, f"open({str(mark)!r}, 'w').close()")
    )
    file = tmp_path / "weights.pth"
    torch.save({"model": state, "args": code}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=rf"the global \w+\.{which}; nothing in it was run"):
        import_weights(file, tmp_path / "ours")
    assert not mark.exists()
    assert not (tmp_path / "ours").exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # So the file was one that does run code in the usual way.


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"--2024-01-01 10:00:00--  https://host/file\n", "a log of wget"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "an empty file"),
    ],
)
def test_what_a_download_left_in_place_of_weights_is_named(content, what, tmp_path: Path):
    (tmp_path / "beit.pth").write_bytes(content)
    with pytest.raises(UserError, match=what):
        import_weights(tmp_path / "beit.pth", tmp_path / "ours")


def refusal(state: dict[str, Tensor], folder: Path) -> str:
    torch.save({"model": state}, folder / "file.pth")
    with pytest.raises(UserError) as refused:
        import_weights(folder / "file.pth", folder / "ours")
    assert not (folder / "ours").exists()
    return refused.value.cause


def test_missing_unexpected_and_misshapen_tensors_are_refused_by_name(state, tmp_path: Path):
    assert "blocks.1.extra is unexpected" in refusal({**state, "blocks.1.extra": torch.ones(1)}, tmp_path)
    assert "norm.bias is missing" in refusal(
        {name: tensor for name, tensor in state.items() if name != "norm.bias"}, tmp_path
    )
    assert "norm.bias has the shape [3], and should have [48]" in refusal(
        {**state, "norm.bias": torch.ones(3)}, tmp_path
    )
    assert "norm.bias holds values" in refusal({**state, "norm.bias": torch.full((48,), torch.nan)}, tmp_path)
    assert "holds no BEiT" in refusal({"conv1.weight": torch.ones(1)}, tmp_path)
    expanded = {**state, "norm.bias": torch.ones(1).expand(10**9)}
    assert "unfold to more than it holds" in refusal(expanded, tmp_path)


def test_the_number_of_heads_is_asked_for_where_nothing_tells_it_and_who_said_a_wrong_one_is_named(
    build, tmp_path: Path
):
    state = build("mim, paper").state_dict()
    assert "how many heads share the width 48" in refusal(state, tmp_path)
    with pytest.raises(UserError, match="5 heads, by --heads, cannot share the width 48"):
        import_weights(tmp_path / "file.pth", tmp_path / "ours", heads=5)
    assert (
        import_weights(tmp_path / "file.pth", tmp_path / "ours", heads=3).described.heads_by == "by --heads"
    )
    folder = as_folder(build("classifier, released").state_dict(), tmp_path / "hf", num_attention_heads=4)
    with pytest.raises(
        UserError,
        match=(
            r"num_attention_heads in config\.json says 4 heads, and the tables of relative biases have 3 "
            r"columns"
        ),
    ):
        import_weights(folder, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def as_folder(state: dict[str, Tensor], folder: Path, **config: object) -> Path:
    """A folder with these tensors in one file, whatever their names, and this config.json."""
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "beit", **config}))
    return folder


def test_another_epsilon_of_the_norms_is_said(build, tmp_path: Path):
    state = build("classifier, released").state_dict()
    for eps, said in ((1e-6, 0), (1e-12, 1)):
        done = import_weights(
            as_folder(state, tmp_path / f"hf{eps}", layer_norm_eps=eps), tmp_path / f"ours{eps}"
        )
        assert [("layer_norm_eps=1e-12" in note) for note in done.notes] == [True] * said


@pytest.mark.parametrize(
    ("config", "taps", "expected"),
    [
        ({"out_indices": [2, 3, 4, 6]}, None, [0, 1, 2, 4]),
        # Ours adds the blocks, of which out_indices cannot say the last.
        ({"out_indices": [3, 4, 5, 6], "beit_taps": [1, 2, 3, 5]}, None, [1, 2, 3, 5]),
        # Someone has changed them since.
        ({"out_indices": [2, 4, 5, 6], "beit_taps": [1, 2, 3, 5]}, None, [0, 2, 3, 4]),
        ({"out_indices": [2, 3, 4, 6]}, [0, 1, 3, 5], [0, 1, 3, 5]),
        ({}, None, [1, 2, 3, 5]),
    ],
)
def test_a_segmenter_reads_the_blocks_that_its_folder_says(config, taps, expected, build, tmp_path: Path):
    folder = as_folder(build("segmenter").state_dict(), tmp_path / "hf", **config)
    done = import_weights(folder, tmp_path / "ours", taps=taps)
    assert load_model(tmp_path / "ours").taps == tuple(expected)
    assert any(f"the head reads blocks {expected}" in note for note in done.notes) or expected == [1, 2, 3, 5]


@pytest.mark.parametrize("indices", [[1, 2, 3, 4], [0, 2, 3, 4], [2, 3, 4, 8], [2, 3, 4]])
def test_blocks_that_are_none_are_refused_with_the_way_out(indices, build, tmp_path: Path):
    folder = as_folder(build("segmenter").state_dict(), tmp_path / "hf", out_indices=indices)
    with pytest.raises(
        UserError, match=r"number i means the tokens after block i - 2(.|\n)*give them with --taps"
    ):
        import_weights(folder, tmp_path / "ours")
    import_weights(folder, tmp_path / "ours", taps=[1, 2, 3, 5])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_folder_in_shards_is_read_as_one(ending, state, tmp_path: Path):
    names = [f"model-{number}.{ending}" for number in (1, 2, 3)]
    places = {name: names[number % 3] for number, name in enumerate(state)}
    for file in names:
        held = {name: tensor for name, tensor in state.items() if places[name] == file}
        (save_file if ending == "safetensors" else torch.save)(held, tmp_path / file)
    index = tmp_path / (
        "model.safetensors.index.json" if ending == "safetensors" else "pytorch_model.bin.index.json"
    )
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    import_weights(tmp_path, tmp_path / "ours")
    read = load_model(tmp_path / "ours").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert set(read_config(tmp_path / "ours").extra["imported_from"]["files"]) == set(names)
    with pytest.raises(UserError, match="names 3 files"):
        import_weights(tmp_path, tmp_path / "again", sha256="0" * 64)
    moved = {**places, "cls_token": next(file for file in names if file != places["cls_token"])}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(UserError, match="do not agree on cls_token"):
        import_weights(tmp_path, tmp_path / "again")
    index.write_text(json.dumps({"weight_map": {**places, "cls_token": "../elsewhere.bin"}}))
    with pytest.raises(UserError, match="no file beside it"):
        import_weights(index, tmp_path / "again")


def test_weights_without_a_head_become_a_backbone_to_start_others_from(state, tmp_path: Path):
    body = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head")}
    torch.save(body, tmp_path / "file.pth")
    done = import_weights(tmp_path / "file.pth", tmp_path / "ours")
    assert done.report.dropped == {"mask_token": "nothing is hidden from a model without a head"}
    model = load_model(tmp_path / "ours")
    assert type(model) is Backbone
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    classifier = Classifier(
        finetuning_config(model.config), 5, pooling="cls", generator=torch.Generator().manual_seed(0)
    )
    taken = start_from_folder(classifier, tmp_path / "ours")
    assert taken.fresh == ["head.weight", "head.bias"]
    assert not taken.dropped


def test_what_is_already_ours_and_folders_in_use_are_refused(state, build, tmp_path: Path):
    save_model(build("mim, released"), tmp_path / "run" / "model")
    for own in (
        tmp_path / "run",
        tmp_path / "run" / "model",
        tmp_path / "run" / "model" / "model.safetensors",
    ):
        with pytest.raises(UserError, match="is a checkpoint of this project already"):
            import_weights(own, tmp_path / "ours")
    torch.save(state, tmp_path / "file.pth")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UserError, match=r"is not empty: chapter\.tex is in it"):
        import_weights(tmp_path / "file.pth", tmp_path / "thesis")


def test_a_classifier_leaves_out_what_only_pretraining_uses(build, tmp_path: Path):
    state = build("classifier, released").state_dict() | {
        "mask_token": torch.ones(1, 1, 48),
        "norm.weight": torch.ones(48),
    }
    torch.save(state, tmp_path / "file.pth")
    report = import_weights(tmp_path / "file.pth", tmp_path / "ours").report
    assert report.dropped.keys() == {"mask_token", "norm.weight"}
    assert report.read == report.written + 2 == len(state)
