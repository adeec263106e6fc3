import pytest
import torch

from beit.checkpoints import load_model, save_model
from beit.config import ModelConfig
from beit.mim import Beit
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
