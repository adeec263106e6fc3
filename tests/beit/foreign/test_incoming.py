"""What a file of weights is told to be, what is passed over, and what is refused with which words."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.checkpoints import load_model
from beit.errors import UserError
from beit.foreign.incoming import import_weights


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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"module": s}, lambda s: {f"module.{n}": t for n, t in s.items()}])
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
    code = Code(os.system, f"touch {mark}") if which == "system" else Code(eval, f"open({str(mark)!r}, 'w').close()")
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
    assert "norm.bias is missing" in refusal({name: tensor for name, tensor in state.items() if name != "norm.bias"}, tmp_path)
    assert "norm.bias has the shape [3], and should have [48]" in refusal({**state, "norm.bias": torch.ones(3)}, tmp_path)
    assert "norm.bias holds values" in refusal({**state, "norm.bias": torch.full((48,), torch.nan)}, tmp_path)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head")}
    assert "a backbone without a head" in refusal(headless, tmp_path)
    assert "holds no BEiT" in refusal({"conv1.weight": torch.ones(1)}, tmp_path)
    expanded = {**state, "norm.bias": torch.ones(1).expand(10**9)}
    assert "unfold to more than it holds" in refusal(expanded, tmp_path)


def test_heads_are_asked_for_where_nothing_tells_them(build, tmp_path: Path):
    assert "how many heads share the width 48" in refusal(build("mim, paper").state_dict(), tmp_path)


def test_a_classifier_leaves_out_what_only_pretraining_uses(build, tmp_path: Path):
    state = build("classifier, released").state_dict() | {"mask_token": torch.ones(1, 1, 48), "norm.weight": torch.ones(48)}
    torch.save(state, tmp_path / "file.pth")
    report = import_weights(tmp_path / "file.pth", tmp_path / "ours").report
    assert report.dropped.keys() == {"mask_token", "norm.weight"}
    assert report.read == report.written + 2 == len(state)
