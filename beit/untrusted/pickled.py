"""Read files of `torch.save` without running any code in them.

A pickle is a program: it names functions of any installed package and calls them. Published weights come as
such programs; some hold whole modules, others training options next to the weights. A file's tensors are read
in three steps:

1. Inspect: the instructions of the program are listed, not executed. A program that names anything outside a
   short list, or uses an instruction that `torch.save` does not need, is refused; the error says which.
2. Load: the remaining programs run, with stand-ins in place of the classes that they name. A stand-in stores
   its arguments and does nothing. In today's zip container (`torch.save` since 1.6), PyTorch's own
   `weights_only` reader does this with our stand-ins for modules. That reader does not open modules in the
   older container; there, our own unpickler has a stand-in for every name, even for the functions that would
   build a tensor.
3. Collect: only tensors are taken from the result.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

MODULES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)
"""Classes of DALL-E's published files, which are whole pickled modules."""

BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "torch.Size",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
)
"""What training checkpoints hold next to the weights: options, scores, loss scalers. They are loaded as
stand-ins and ignored."""

_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"

_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

WRAPPERS = ("state_dict", "weights", "model", "module")
"""Keys under which checkpoints keep their state dict. In order: mmsegmentation and mmpretrain; unilm's
tokenizer; unilm; DeepSpeed."""

_CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
}

ALLOWED = frozenset({*MODULES, *BESIDE_WEIGHTS, *_DTYPES, *_CONTAINERS, _TENSOR, _PARAMETER, "torch.device"})
"""All names that a file may use."""

_SECOND_PROTOCOL = """
    PROTO STOP GLOBAL BINPERSID NEWOBJ REDUCE BUILD MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_DICT
    EMPTY_LIST SETITEM SETITEMS APPEND APPENDS BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE BINSTRING
    SHORT_BINSTRING NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT LONG1
"""

_INSTRUCTIONS = frozenset(_SECOND_PROTOCOL.split())
"""All instructions of pickle's protocol 2 that `torch.save` needs."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the five pickles of the older container. The others are the version, the machine, the object,
and the keys of its storages."""


class NotWeightsError(Exception):
    """Raised for a file that holds no weights; its text says what the file is, to complete "FILE is"."""


def read_torch(data: bytes) -> dict[str, Tensor]:
    """Return the tensors in a file of `torch.save`, by name.

    The file may hold a state dict, a checkpoint with a state dict in it, or a whole module. The tensors may
    share memory, and may be views larger than that memory: check their shapes before copying them.

    Args:
        data: The file's contents.

    Raises:
        NotWeightsError: If it is anything else; its text says what.
    """
    try:
        content = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
        return dict(_tensors(content))
    except NotWeightsError:
        raise
    except Exception as error:  # A damaged or hostile file can make a reader raise anything.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise NotWeightsError(f"a damaged file of torch.save ({reason})") from error


class _Inert:
    """Stands in for a named class or function: it stores its arguments and does nothing."""

    name: ClassVar[str] = ""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _inert(name: str) -> type[_Inert]:
    return type(name.rpartition(".")[2], (_Inert,), {"name": name})


# ---- Step 1: inspect


def _inspect(data: bytes, start: int = 0) -> int:
    """Check the instructions of one pickle, without executing them.

    Args:
        data: The bytes that contain it.
        start: Where it begins.

    Returns:
        Where it ends.

    Raises:
        NotWeightsError: If it uses a name or an instruction that is not allowed.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    strings, unknown = ["?", "?"], ""
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            if isinstance(argument, str):
                strings = [strings[1], argument]
            name = {"GLOBAL": argument, "INST": argument, "STACK_GLOBAL": " ".join(strings)}.get(
                instruction.name
            )
            if name is not None and (name := str(name).replace(" ", ".")) not in ALLOWED:
                raise NotWeightsError(f"a pickle with the global {name}")
            if instruction.name not in _INSTRUCTIONS:
                unknown = unknown or instruction.name
            if instruction.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data):
                raise NotWeightsError("a pickle made to fill the memory")
    except (ValueError, UnicodeDecodeError) as error:
        raise NotWeightsError(f"a pickle that is damaged or cut off ({error})") from None
    if unknown:
        raise NotWeightsError(f"a pickle with the instruction {unknown}, which torch.save does not write")
    return stream.tell()


# ---- Step 2: load


def _read_zip(data: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if any("/code/" in name for name in names):
                raise NotWeightsError("a TorchScript archive, which holds code")
            if not any(name.endswith("/data.pkl") for name in names):
                raise NotWeightsError(
                    f"a zip archive of something else (with {names[0] if names else 'nothing'} in it)"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise NotWeightsError("a compressed zip archive, which torch.save does not write")
            for name in names:
                if name.endswith(".pkl"):
                    _inspect(archive.read(name))
    except zipfile.BadZipFile as error:
        raise NotWeightsError(f"a damaged zip archive, as of a download that broke off ({error})") from None
    with torch.serialization.safe_globals([(_inert(name), name) for name in (*MODULES, *BESIDE_WEIGHTS)]):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


@dataclass
class _Storage:
    """The memory that a tensor is a view of."""

    dtype: torch.dtype
    key: str
    numel: int
    values: Tensor | None = None


class _Unpickler(pickle.Unpickler):
    """Builds containers and stand-ins only, whatever the pickle calls."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages: dict[str, _Storage] = {}
        # New stand-ins for every file, because an instruction may change a class.
        self._named = {name: _CONTAINERS.get(name) or _inert(name) for name in ALLOWED}

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in self._named:
            raise NotWeightsError(f"a pickle with the global {full}")
        return self._named[full]

    def persistent_load(self, pid: Any) -> Any:
        kind, named, *rest = pid if isinstance(pid, tuple) and len(pid) > 1 else (None, None)
        name = named.name if isinstance(named, type) and issubclass(named, _Inert) else None
        if kind == "module" and name in MODULES:
            return named  # The third entry is the class's source code, which is ignored.
        if kind == "storage" and name in _DTYPES and len(rest) == 4 and rest[3] is None:
            key, _, numel, _ = rest
            return self.storages.setdefault(str(key), _Storage(_DTYPES[name], str(key), int(numel)))
        raise NotWeightsError(f"a pickle with a persistent id of the unknown kind {kind!r:.40}")


def _read_legacy(data: bytes) -> Any:
    edges = [0]
    for _ in range(5):
        edges.append(_inspect(data, edges[-1]))
        if len(edges) == 2 and _Unpickler(data[: edges[1]]).load() != _MAGIC:
            raise NotWeightsError("a pickle that torch.save did not write")
    _, _, machine, whole, keys = (_Unpickler(data[start:end]) for start, end in pairwise(edges))
    if not machine.load()["little_endian"]:
        raise NotWeightsError("a file of torch.save from a big-endian machine")
    content, offset = whole.load(), edges[-1]
    for key in keys.load():
        storage = whole.storages[str(key)]
        size = storage.numel * storage.dtype.itemsize
        if int.from_bytes(data[offset : offset + 8], "little") != storage.numel or offset + 8 + size > len(
            data
        ):
            raise NotWeightsError("a file of torch.save that is cut off")
        storage.values = torch.frombuffer(
            bytearray(data[offset + 8 : offset + 8 + size]), dtype=storage.dtype
        )
        offset += 8 + size
    return content


# ---- Step 3: collect


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a module, or of a state dict, possibly inside one of `WRAPPERS`."""
    if isinstance(content, _Inert):
        yield from _of_module(content)
        return
    if not isinstance(content, Mapping):
        raise NotWeightsError(f"a file of torch.save with a {type(content).__name__} in it")
    for wrapper in WRAPPERS:
        if isinstance(inner := content.get(wrapper), Mapping):
            content = inner
            break
    for name, value in content.items():
        tensor = _as_tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise NotWeightsError(
                f"a file of torch.save with {name!r:.60} in it, which is no tensor but a "
                f"{type(value).__name__}"
            )
        yield name, tensor


def _of_module(module: _Inert) -> Iterator[tuple[str, Tensor]]:
    waiting, seen = [("", module)], set()
    while waiting:
        prefix, part = waiting.pop()
        if id(part) in seen or not isinstance(part, _Inert):
            raise NotWeightsError(f"a pickled module that is not a tree (at {prefix or 'its top'})")
        seen.add(id(part))
        for name, value in part.__dict__.get("_parameters", {}).items():
            if (tensor := _as_tensor(value)) is not None:
                yield prefix + name, tensor
        waiting += [(f"{prefix}{name}.", child) for name, child in part.__dict__.get("_modules", {}).items()]


def _as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or build the one that a stand-in describes; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    name = type(value).name if isinstance(value, _Inert) else None
    if name == _PARAMETER:
        return _as_tensor(value.arguments[0])
    if name != _TENSOR or not isinstance(value.arguments[0], _Storage):
        return None
    storage, offset, size, stride, *_ = value.arguments
    if storage.values is None:
        raise NotWeightsError("a file of torch.save that is cut off")
    tensor: Tensor = storage.values.as_strided(size, stride, offset)
    return tensor
