import pytest
import torch
from safetensors.torch import save_file

from beit.tokenizer.dalle import DALLE
from beit.tokenizer.dvae import Encoder
from beit.tokenizer.registry import load_tokenizer
from beit.tokenizer.unilm import UnilmConfig, UnilmDvae, UnilmTokenizer
from pipelines.cli import main


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_published_tokenizer_is_converted_to_a_folder_that_loads(tmp_path, capsys):
    torch.manual_seed(0)
    model = UnilmDvae(UnilmConfig())
    torch.save({"weights": model.state_dict()}, tmp_path / "pytorch_model.bin")
    main(["tokenizer", "convert", str(tmp_path / "pytorch_model.bin"), str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "8,192 tokens of 8 px, with decoder" in shown
    assert f"--tokenizer.path {tmp_path}/out" in shown
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(
        load_tokenizer(str(tmp_path / "out")).encode(images), UnilmTokenizer(model).encode(images)
    )


def test_what_cannot_be_converted_is_refused_in_two_lines(tmp_path, capsys):
    page = tmp_path / "encoder.pkl"
    page.write_text("<html><body>AccessDenied</body></html>")
    shown = refused(["tokenizer", "convert", page, tmp_path / "out"], capsys)
    assert shown.splitlines()[0] == f"error: {page} is an HTML page; nothing in it was run"
    assert len(shown.splitlines()) == 2
    assert "s3://bucket/out is an address" in refused(
        ["tokenizer", "convert", page, "s3://bucket/out"], capsys
    )
    save_file({"blocks.input.w": torch.zeros(8, 3, 7, 7)}, page)
    with torch.device("meta"):
        names = len(Encoder(DALLE).state_dict())
    assert f"1 tensors, blocks.group_1.block_1.res_path.conv_1.b absent; it should have {names}" in refused(
        ["tokenizer", "convert", page, tmp_path / "out"], capsys
    )
    assert "OUT is missing" in refused(["tokenizer", "convert", page], capsys)
