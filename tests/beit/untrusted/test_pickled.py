"""Files of torch.save: tensors come out, whatever the container, and nothing in them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Decoder, Encoder, initialise
from beit.untrusted import pickled
from beit.untrusted.pickled import NotWeightsError, read_torch

CONFIG = DvaeConfig(vocab_size=20, encoder_width=8, decoder_width=8, blocks=2, bottleneck=4)

MAGIC, VERSION, MACHINE = (
    0x1950A86A20F9469CFC6C,
    1001,
    {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
)


class Call:
    """Calls a function when it is unpickled in the usual way."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def in_zip(*pickles: bytes) -> bytes:
    """The zip container around a program of our own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in zip(("archive/data.pkl", "archive/constants.pkl"), pickles, strict=False):
            archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def in_legacy(whole: bytes, *, evil_at: int = 3) -> bytes:
    """The older container around a program of our own, in the place of one of its five."""
    parts = [pickle.dumps(part, protocol=2) for part in (MAGIC, VERSION, MACHINE, {}, [])]
    parts[evil_at] = whole
    return b"".join(parts)


def program(*lines: bytes) -> bytes:
    return b"\x80\x02" + b"".join(lines) + b"."


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("part", "count"), [(Encoder, 74), (Decoder, 76)])
def test_whole_modules_are_read_without_their_package(
    part, count, legacy, tmp_path: Path, pickle_as_published
):
    original = part(CONFIG)
    initialise(original, torch.Generator().manual_seed(0))
    pickle_as_published(original, tmp_path / "part.pkl", legacy=legacy)
    with pytest.raises(Exception, match="dall_e"):
        torch.load(tmp_path / "part.pkl", weights_only=False)
    read = read_torch((tmp_path / "part.pkl").read_bytes())
    expected = original.state_dict()
    assert len(read) == count
    assert read.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "weights"])
def test_state_dicts_are_read_also_within_checkpoints(wrapper, legacy):
    shared = torch.arange(12.0)
    state = {
        "half": torch.rand(3).half(),
        "turned": shared.view(3, 4).t(),
        "part": shared[5:9],
        "whole": torch.nn.Parameter(shared),
    }
    file = io.BytesIO()
    content = state if wrapper is None else {"epoch": 3, wrapper: OrderedDict(state), "note": "x"}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    read = read_torch(file.getvalue())
    assert read.keys() == state.keys()
    assert all(
        torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype
        for name, tensor in read.items()
    )


def malicious(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Programs that create a folder if nothing stops them, each with what its refusal should name."""
    make = f"c{os.mkdir.__module__}\nmkdir\n".encode()
    path = text(str(mark)) + b"\x85"  # a tuple of one
    encoder = b"cdall_e.encoder\nEncoder\n"
    return {
        "os.system": (
            pickle.dumps(Call(os.system, f"mkdir {mark}"), protocol=2),
            f"the global {os.system.__module__}.system",
        ),
        "os.system by name": (
            program(b"cos\nsystem\n", text(f"mkdir {mark}"), b"\x85R"),
            r"the global os\.system",
        ),
        "eval": (
            pickle.dumps(Call(eval, f"__import__('os').mkdir({str(mark)!r})"), protocol=2),
            r"the global __builtin__\.eval",
        ),
        "newer protocol": (
            pickle.dumps(Call(os.mkdir, str(mark)), protocol=4),
            rf"the global {os.mkdir.__module__}\.mkdir",
        ),
        "oldest protocol": (
            pickle.dumps(Call(os.mkdir, str(mark)), protocol=0),
            rf"the global {os.mkdir.__module__}\.mkdir",
        ),
        "another way to call": (
            program(b"(", text(str(mark)), f"i{os.mkdir.__module__}\nmkdir\n".encode()),
            "mkdir",
        ),
        # An allowed class gets the function as its __setstate__, which the next instruction calls.
        "state of an allowed class": (
            program(encoder, b")\x81}", text("__setstate__"), make, b"sb", text(str(mark)), b"b"),
            "mkdir",
        ),
        "through an allowed class": (
            program(b"ccollections\nOrderedDict.__init__.__globals__\n"),
            "__globals__",
        ),
        "arguments of an allowed class": (program(encoder, make, path, b"R\x85R"), "mkdir"),
        # What is evaluated to name a storage, and within that to name a module.
        "nested persistent ids": (
            program(
                b"(",
                text("storage"),
                b"(",
                text("module"),
                make,
                path,
                b"R",
                text("f"),
                text("s"),
                b"tQ",
                text("0"),
                b"tQ",
            ),
            "mkdir",
        ),
    }


NAMES = tuple(malicious(Path("mark")))


@pytest.mark.parametrize("name", NAMES)
def test_malicious_programs_do_not_run_in_any_container(name: str, tmp_path: Path):
    mark = tmp_path / "mark"
    whole, named = malicious(mark)[name]
    for data in (in_zip(whole), in_legacy(whole), whole):
        with pytest.raises(NotWeightsError, match=named):
            read_torch(data)
        assert not mark.exists()
    for place in range(5):
        with pytest.raises(NotWeightsError, match=named):
            read_torch(in_legacy(whole, evil_at=place))
    with pytest.raises(NotWeightsError, match=named):
        read_torch(in_zip(pickle.dumps({}, protocol=2), whole))
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("through an allowed class", "nested persistent ids")]
)
def test_these_programs_do_run_in_the_usual_way(name: str, tmp_path: Path):
    class Careless(pickle.Unpickler):
        def find_class(self, module, name):
            return pickled._Inert if module.startswith("dall_e") else super().find_class(module, name)

    mark = tmp_path / "mark"
    Careless(io.BytesIO(malicious(mark)[name][0])).load()
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", NAMES)
def test_the_second_door_holds_without_the_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / "mark"
    whole, _ = malicious(mark)[name]
    inspected = pickled._inspect

    def only_measure(data: bytes, start: int = 0) -> int:
        try:
            return inspected(data, start)
        except NotWeightsError:
            return data.index(whole, start) + len(whole)

    monkeypatch.setattr(pickled, "_inspect", only_measure)
    for data in (in_zip(whole), *(in_legacy(whole, evil_at=place) for place in (0, 2, 3, 4))):
        with pytest.raises(NotWeightsError):
            read_torch(data)
        assert not mark.exists()


def test_persistent_ids_name_storages_and_modules_only():
    for pid in (
        ("file", "/etc/passwd"),
        ("module", OrderedDict, None, None),
        ("storage", OrderedDict, "0", "cpu", 1, None),
        "0",
    ):
        with pytest.raises(NotWeightsError, match="persistent id"):
            pickled._Unpickler(b"").persistent_load(pid)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_download_that_broke_off_is_refused_wherever_it_did(legacy):
    file = io.BytesIO()
    torch.save({"a": torch.rand(50), "b": torch.rand(50)}, file, _use_new_zipfile_serialization=not legacy)
    whole = file.getvalue()
    for share in (0.02, 0.3, 0.6, 0.8, 0.99):
        with pytest.raises(NotWeightsError, match=r"damaged|cut off"):
            read_torch(whole[: int(share * len(whole))])


def test_what_is_no_tree_of_modules_and_no_state_dict_is_refused():
    looped = program(
        b"cdall_e.encoder\nEncoder\n)\x81q\x00}",
        text("_modules"),
        b"}",
        text("again"),
        b"h\x00ss",
        text("_parameters"),
        b"}sb",
    )
    with pytest.raises(NotWeightsError, match="not a tree"):
        read_torch(in_legacy(looped))
    for content, what in (
        ([torch.ones(1)], "with a list in it"),
        ({"lr": 0.1, "w": torch.ones(1)}, "'lr' in it, which is no tensor"),
    ):
        file = io.BytesIO()
        torch.save(content, file)
        with pytest.raises(NotWeightsError, match=what):
            read_torch(file.getvalue())
