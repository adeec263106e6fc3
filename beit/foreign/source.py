"""Read published weights: a single file, or a folder of Hugging Face's, in one file or in shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from beit.errors import UserError
from beit.foreign.huggingface import Settings, read_settings
from beit.foreign.names import INDEX
from beit.foreign.translation import SOURCES
from beit.untrusted.files import read_bytes, read_tensors
from beit.untrusted.pickled import NotWeightsError
from beit.vit.checkpoints import WEIGHTS_FILE, is_checkpoint

LARGEST_BYTES = 16 * 2**30

WEIGHTS_OF_FOLDERS = ("model.safetensors", "pytorch_model.bin")
INDEX_ENDING = ".index.json"
"""How the name of the index ends, the file that says which shard holds which tensor."""


@dataclass(frozen=True)
class Published:
    """Weights as read from a path."""

    path: Path
    """The file with the weights; if they are in shards, their index."""
    tensors: dict[str, Tensor]
    digests: dict[str, str]
    """SHA-256 of each file of weights."""
    settings: Settings
    """From the folder's JSON files."""


def read_published(source: Path, sha256: str | None) -> Published:
    """Read a file or folder of published weights.

    Args:
        source: A file, a folder of Hugging Face's, or the index of a folder in shards.
        sha256: The SHA-256 that the file must have, in hexadecimal; not for shards.

    Raises:
        UserError: If it is something else; the message says what.
    """
    _refuse_own(source)
    if not source.exists():
        raise UserError(f"{source} is not there", f"give {SOURCES}")
    if source.is_dir():
        names = (*WEIGHTS_OF_FOLDERS, *(name + INDEX_ENDING for name in WEIGHTS_OF_FOLDERS))
        file = next((source / name for name in names if (source / name).is_file()), None)
        if file is None:
            raise UserError(f"{source} holds none of {', '.join(names)}", f"give {SOURCES}")
    else:
        file = source
    # For a folder's file given by name, the folder's config is read as well.
    whole_folder = file.name.removesuffix(INDEX_ENDING) in WEIGHTS_OF_FOLDERS
    settings = read_settings(file.parent) if whole_folder else Settings()
    if file.name.endswith(INDEX_ENDING):
        tensors, digests = _read_shards(file, sha256)
    else:
        tensors, digest = _read(file, sha256)
        digests = {file.name: digest}
    return Published(file, tensors, digests, settings)


def _refuse_own(source: Path) -> None:
    """Refuse a checkpoint of this project: its names are unilm's, so it would pass for a file of unilm's."""
    inside = (
        (source, source / "model")
        if source.is_dir()
        else (source.parent,)
        if source.name == WEIGHTS_FILE
        else ()
    )
    for folder in inside:
        if is_checkpoint(folder):
            raise UserError(
                f"{folder} is a checkpoint of this project already",
                f"use it as it is; beit export {folder} OUT writes other projects' formats",
            )


def _read(path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    data, digest = read_bytes(path, sha256, largest=LARGEST_BYTES, what="BEiT", sources=SOURCES)
    try:
        tensors = read_tensors(data)
        if sum(
            tensor.numel() * tensor.element_size()
            for name, tensor in tensors.items()
            if not name.endswith(INDEX)
        ) > len(data):
            raise NotWeightsError("a file whose tensors would unfold to more than it holds")
    except NotWeightsError as error:
        raise UserError(
            f"{path} is {error}; nothing in it was run",
            "get the file from its publisher, and compare --sha256",
        ) from None
    return tensors, digest


def _read_shards(index: Path, sha256: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    places = _weight_map(index)
    if sha256 is not None:
        raise UserError(
            f"--sha256 {sha256}: {index} names {len(set(places.values()))} files",
            "leave it out: the sum of each is kept in the checkpoint",
        )
    tensors: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    for name in sorted(set(places.values())):
        shard = index.parent / name
        if not shard.is_file():
            raise UserError(f"{shard} is not there, and {index.name} names it", "download the whole folder")
        held, digests[name] = _read(shard, None)
        declared = {tensor for tensor, place in places.items() if place == name}
        if differing := sorted(declared ^ held.keys()):
            raise UserError(
                f"{shard} and {index.name} do not agree on {differing[0]}", "download the whole folder again"
            )
        tensors |= held
    return tensors, digests


def _weight_map(index: Path) -> dict[str, str]:
    """Read which file each tensor is in."""
    try:
        values = json.loads(index.read_text())
    except ValueError as error:
        raise UserError(f"{index} is not JSON ({error})", "download it again") from None
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map, which says where each tensor is", "download it again")
    for place in places.values():
        if not isinstance(place, str) or Path(place).name != place:
            raise UserError(
                f"{index} names {place!r}, which is no file beside it", "get the folder from its publisher"
            )
    return dict(places)
