"""Files in the form of the published ones: modules pickled whole, by classes of the package dall_e."""

import copy
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from beit.errors import UserError
from beit.tokenizer import dvae as code
from beit.tokenizer.dalle import convert_published, read_published
from beit.tokenizer.dvae import Dvae, DvaeConfig, initialise

CONFIG = DvaeConfig(vocab_size=20, encoder_width=8, decoder_width=8, blocks=2, bottleneck=4)


@pytest.fixture
def original() -> Dvae:
    dvae = Dvae(CONFIG)
    initialise(dvae, torch.Generator().manual_seed(0))
    return dvae


def pickle_as_published(part: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a module whole, under the class names that the authors' files have."""
    kind = type(part).__name__
    module = f"dall_e.{kind.lower()}"
    places = {type(part): (module, kind), code.Block: (module, f"{kind}Block"), code.Conv2d: ("dall_e.utils", "Conv2d")}
    disguised = copy.deepcopy(part)
    with monkeypatch.context() as patch:
        for name in ("dall_e", "dall_e.utils", module):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for cls, (at, name) in places.items():
            published = type(name, (cls,), {"__module__": at})
            setattr(sys.modules[at], name, published)
            for layer in disguised.modules():
                if type(layer) is cls:
                    layer.__class__ = published
        torch.save(disguised, path)


def test_whole_pickled_modules_are_read_without_their_package(original: Dvae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for part, name in ((original.encoder, "encoder.pkl"), (original.decoder, "decoder.pkl")):
        pickle_as_published(part, tmp_path / name, monkeypatch)
    assert "dall_e" not in sys.modules
    with pytest.raises(Exception, match="dall_e"):
        torch.load(tmp_path / "encoder.pkl", weights_only=False)
    read = convert_published(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", CONFIG)
    expected = original.state_dict()
    assert read.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())


def test_plain_state_dicts_are_read_too(original: Dvae, tmp_path: Path):
    torch.save(original.encoder.state_dict(), tmp_path / "encoder.pth")
    torch.save(original.decoder.state_dict(), tmp_path / "decoder.pth")
    read = convert_published(tmp_path / "encoder.pth", tmp_path / "decoder.pth", CONFIG)
    assert torch.equal(read.decoder.blocks.input.w, original.decoder.blocks.input.w)


def test_files_in_the_wrong_order_are_refused(original: Dvae, tmp_path: Path):
    torch.save(original.encoder.state_dict(), tmp_path / "encoder.pth")
    torch.save(original.decoder.state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(UserError, match="tensors of the encoder"):
        convert_published(tmp_path / "decoder.pth", tmp_path / "encoder.pth", CONFIG)


class Command:
    def __reduce__(self):
        return os.mkdir, (Command.target,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path):
    Command.target = str(tmp_path / "made")
    torch.save(Command(), tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match=r"encoder\.pkl holds something other"):
        read_published(tmp_path / "encoder.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"--2024-01-01-- connecting ... 200 OK"])
def test_downloads_gone_wrong_are_refused(content: bytes, tmp_path: Path):
    (tmp_path / "encoder.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.pkl holds something other"):
        read_published(tmp_path / "encoder.pkl")
