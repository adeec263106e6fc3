"""Tokenizer folders: the weights, and a description that they are checked against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beit.errors import UserError

WEIGHTS = "tokenizer.safetensors"
DESCRIPTION = "tokenizer.json"

Model = TypeVar("Model", bound=nn.Module)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def write_folder(
    folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any], *, half: bool = False
) -> str:
    """Write `tokenizer.safetensors` and `tokenizer.json` into a folder, which is created if necessary.

    Args:
        folder: The tokenizer's folder; existing files are replaced.
        state: The weights by name.
        description: At least "kind" and "config"; plain JSON types. The digest of the weights is added.
        half: Whether to store the weights as float16. They are read back as float32; the digest is that of
            the values read back.

    Returns:
        The digest.
    """
    stored = {
        name: value.detach().to("cpu", torch.float16 if half else torch.float32).contiguous()
        for name, value in state.items()
    }
    digest = weights_digest(stored)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(stored))
    (folder / DESCRIPTION).write_text(json.dumps({**description, "digest": digest}, indent=2) + "\n")
    return digest


def read_description(folder: Path) -> dict[str, Any]:
    """Read a tokenizer folder's `tokenizer.json`.

    Raises:
        UserError: If the folder holds no tokenizer, or if the description lacks an entry that loading needs.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}, so it is not a tokenizer",
                "give a folder that `beit tokenizer train` or `beit tokenizer convert` wrote",
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise _damaged(folder, f"{DESCRIPTION} is not JSON ({error})") from None
    for name, kind in (("digest", str), ("config", dict)):
        if not isinstance(description, dict) or not isinstance(description.get(name), kind):
            raise _damaged(folder, f"{DESCRIPTION} has no {name}")
    return dict(description)


def read_model(folder: Path, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Read a tokenizer's model with its weights, float32 on the CPU.

    Args:
        folder: The tokenizer's folder.
        build: Builds the model from the description. It is called with "meta" as the default device, because
            the weights are replaced afterwards.

    Raises:
        UserError: If the folder holds no tokenizer, a damaged one, or weights that do not fit its
            description.
    """
    description = read_description(folder)
    try:
        state = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise _damaged(folder, f"{WEIGHTS} cannot be read ({error})") from None
    if (digest := weights_digest(state)) != description["digest"]:
        raise _damaged(
            folder, f"{WEIGHTS} has the digest {digest[:12]}, {DESCRIPTION} says {description['digest'][:12]}"
        )
    try:
        with torch.device("meta"):
            model = build(description)
    except UserError as error:
        raise _damaged(folder, f"the config in {DESCRIPTION}: {error.cause}") from None
    if difference := shape_difference(state, model.state_dict()):
        name, found, expected = difference
        raise _damaged(folder, f"{name} is {found} in {WEIGHTS}, {expected} by the config in {DESCRIPTION}")
    model.load_state_dict(state, assign=True)
    return model


def shape_difference(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, str, str] | None:
    """Return the first name, in order, whose shapes differ, with the shape found and the one expected.

    The shape of a tensor that does not exist is "absent".
    """
    shapes = [
        {name: str(list(tensor.shape)) for name, tensor in tensors.items()} for tensors in (found, expected)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        left, right = (of.get(name, "absent") for of in shapes)
        if left != right:
            return name, left, right
    return None


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} holds a damaged tokenizer: {what}",
        "copy both files again from the same tokenizer, or train or convert it again",
    )
