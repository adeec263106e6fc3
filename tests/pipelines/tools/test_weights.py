import re

import pytest
import torch

from beit.config import ModelConfig
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.vit.checkpoints import save_model
from pipelines.cli import main


def test_a_run_goes_out_and_comes_in_and_each_command_prints_what_became_of_the_tensors(tmp_path, capsys):
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2), 20)
    save_model(model, tmp_path / "run" / "model")
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    shown = capsys.readouterr().out
    assert "split        2 into 6, such as blocks.0.attn.qkv.weight ->" in shown
    assert f'next: transformers.BeitForMaskedImageModeling.from_pretrained("{tmp_path}/hf")' in shown
    main(["import", str(tmp_path / "hf"), str(tmp_path / "back")])
    shown = capsys.readouterr().out
    assert "joined       6 into 2" in shown
    assert "missing      0\n  unexpected   0" in shown
    assert "(from preprocessor_config.json)" in shown
    back = load_model(tmp_path / "back").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(SystemExit, match="2"):
        main(["import", str(tmp_path / "hf"), str(tmp_path / "back")])
    assert "holds a checkpoint already" in capsys.readouterr().err


def refusal(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit, match="2"):
        main([str(argument) for argument in arguments])
    return capsys.readouterr().err


def test_what_the_two_commands_do_not_read_is_told_apart(tmp_path, capsys, monkeypatch):
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2), 20)
    save_model(model, tmp_path / "run" / "model")
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    main(["export", str(tmp_path / "run" / "model"), str(tmp_path / "unilm.pth"), "--format", "unilm"])
    capsys.readouterr()
    new = tmp_path / "new"
    monkeypatch.chdir(tmp_path)
    here = sorted(tmp_path.iterdir())
    for arguments in (
        ("import", "https://host/beit.pth", new),
        ("import", "hf", "s3://bucket/new"),
        ("export", "run", "s3://bucket/new"),
    ):
        assert "is an address, and weights are imported and exported on this machine" in refusal(
            capsys, *arguments
        )
    assert sorted(tmp_path.iterdir()) == here
    assert "is a checkpoint of this project already" in refusal(capsys, "import", tmp_path / "run", new)
    assert "3 heads, by --heads, cannot share" in refusal(
        capsys, "import", tmp_path / "unilm.pth", new, "--heads", 3
    )
    assert "holds a mim, and only segmenters read several blocks" in refusal(
        capsys, "import", tmp_path / "hf", new, "--taps", 1, 2, 3, 5
    )
    assert not new.exists()
    assert "is a folder of Hugging Face's, and no run" in refusal(capsys, "export", tmp_path / "hf", new)
    assert "is a file, and no run" in refusal(capsys, "export", tmp_path / "unilm.pth", new)
    assert "is an address of the web" in refusal(capsys, "export", "https://host/run", new)
    assert "holds no model" in refusal(capsys, "export", tmp_path, new)


def test_what_the_file_system_refuses_is_two_lines_and_leaves_nothing(tmp_path, capsys):
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2), 20)
    save_model(model, tmp_path / "run" / "model")
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    capsys.readouterr()
    before, endless = sorted(tmp_path.rglob("*")), "a" * 300
    for arguments in (
        ("import", tmp_path / endless, tmp_path / "new"),
        ("import", tmp_path / "hf", tmp_path / endless),
        ("export", tmp_path / "run", tmp_path / endless),
        ("export", tmp_path / endless, tmp_path / "new"),
        ("import", tmp_path / "hf", tmp_path / "hf" / "config.json"),
        ("export", tmp_path / "run", tmp_path / "hf" / "config.json" / "new"),
    ):
        said = refusal(capsys, *arguments)
        assert re.fullmatch(
            r"error: .*: (File name too long|File exists|Not a directory)\n       give another file or OUT\n",
            said,
        ), said
    assert sorted(tmp_path.rglob("*")) == before
