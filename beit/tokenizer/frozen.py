"""A trained discrete VAE as a tokenizer, and the folder it is kept in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from beit.config import from_dict, to_dict
from beit.errors import UserError
from beit.tokenizer.dvae import PIXEL_MARGIN, PX_PER_TOKEN, Decoder, Dvae, DvaeConfig, Encoder, map_pixels, set_precision, unmap_pixels

WEIGHTS = "tokenizer.safetensors"
DESCRIPTION = "tokenizer.json"

Part = TypeVar("Part", Encoder, Decoder)

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""Largest activation of one pass, by device: on a CPU what its caches hold, on a GPU what occupies it. One image at least."""


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


class DvaeTokenizer:
    """A frozen discrete VAE: `encode` takes the most probable token, without noise.

    float32 on a CPU. On a GPU the convolutions are float16 but for the layers at the tokens, as in DALL-E's own code.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder | None, *, device: str | torch.device = "cpu") -> None:
        """Take over modules with their weights; the digest is of the weights as they are now.

        Args:
            encoder: With float32 weights. It is moved and converted, not copied.
            decoder: The same, or None for a tokenizer that only encodes.
            device: Where images and tokens are taken to and tokens and images come from.
        """
        parts = {"encoder": encoder, "decoder": decoder}
        state = {f"{name}.{key}": value for name, part in parts.items() if part is not None for key, value in part.state_dict().items()}
        self.digest = weights_digest(state)
        self.device = torch.device(device)
        self.precision: Literal["float32", "float16"] = "float16" if self.device.type == "cuda" else "float32"
        self.px_per_token = PX_PER_TOKEN
        self.vocab_size = state["encoder.blocks.output.conv.b"].shape[0]
        self.has_decoder = decoder is not None
        self._width = state["encoder.blocks.input.b"].shape[0]
        self._encoder = self._freeze(encoder)
        self._decoder = None if decoder is None else self._freeze(decoder)

    def _freeze(self, part: Part) -> Part:
        part.eval().requires_grad_(False).to(self.device)
        set_precision(part, self.precision)
        for weights in part.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.contiguous(memory_format=torch.channels_last)
        return part

    def _chunk(self, pixels: int) -> int:
        """Images that go through together."""
        return max(1, CHUNK_BYTES.get(self.device.type, CHUNK_BYTES["cpu"]) // (4 * int(self._width) * pixels))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, h, w] -> int64 [B, N]; see `ImageTokenizer.encode`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"encode reads uint8 [B, 3, h, w], not {images.dtype} {list(images.shape)}")
        height, width = images.shape[2:]
        if height % PX_PER_TOKEN or width % PX_PER_TOKEN:
            raise ValueError(f"{height} x {width} pixels are not multiples of {PX_PER_TOKEN}, the pixels of a token")
        tokens = [
            self._encoder(map_pixels(part.to(self.device)).contiguous(memory_format=torch.channels_last)).argmax(1).flatten(1)
            for part in torch.split(images, self._chunk(height * width))
        ]
        return torch.cat(tokens)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, N] -> uint8 [B, 3, h, w]; see `ImageTokenizer.decode`."""
        if self._decoder is None:
            raise ValueError("this tokenizer has no decoder")
        grid = math.isqrt(tokens.shape[1])
        if tokens.ndim != 2 or grid**2 != tokens.shape[1]:
            raise ValueError(f"decode reads the tokens of square grids [B, grid * grid], not {list(tokens.shape)}")
        images = [
            unmap_pixels(self._decoder.from_tokens(part.to(self.device).reshape(-1, grid, grid))[:, :3].float().sigmoid())
            .mul(255)
            .round()
            .to(torch.uint8)
            for part in torch.split(tokens, self._chunk((grid * PX_PER_TOKEN) ** 2))
        ]
        return torch.cat(images)


def save_tokenizer(
    folder: Path, dvae: Dvae, *, image_size: int, training: Mapping[str, Any], figures: Mapping[str, float], half: bool = False
) -> None:
    """Write `tokenizer.safetensors` and `tokenizer.json` into a folder, which is made if it is absent.

    Args:
        folder: The tokenizer's folder; files of an earlier save are replaced.
        dvae: The trained model.
        image_size: Side in pixels of the images it was trained on.
        training: How it was trained (settings, data, versions): plain JSON types.
        figures: What it reaches, by name.
        half: Keep the weights as float16. They are read back to float32, and the digest is of what is read back.
    """
    stored = {
        name: value.detach().to("cpu", torch.float16 if half else torch.float32).contiguous() for name, value in dvae.state_dict().items()
    }
    description = {
        "kind": "dvae",
        "config": to_dict(dvae.config),
        "vocab_size": dvae.config.vocab_size,
        "px_per_token": PX_PER_TOKEN,
        "image_size": image_size,
        "pixels": {"scale": 1 - 2 * PIXEL_MARGIN, "offset": PIXEL_MARGIN},
        "digest": weights_digest(stored),
        "training": dict(training),
        "figures": dict(figures),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(stored))
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of a tokenizer folder's `tokenizer.json`.

    Raises:
        UserError: When the folder holds no tokenizer, or a description without what loading needs.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}, so it is not a tokenizer", "give a folder that `beit tokenizer train` wrote")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise _damaged(folder, f"{DESCRIPTION} is not JSON ({error})") from None
    for name, kind in (("digest", str), ("config", dict)):
        if not isinstance(description, dict) or not isinstance(description.get(name), kind):
            raise _damaged(folder, f"{DESCRIPTION} has no {name}")
    return dict(description)


def load_dvae(folder: Path) -> Dvae:
    """Read a saved discrete VAE to float32 on the CPU, for training on or for `DvaeTokenizer`.

    Raises:
        UserError: When the folder holds no tokenizer, a damaged one, or weights other than its description says.
    """
    description = read_description(folder)
    try:
        state = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise _damaged(folder, f"{WEIGHTS} cannot be read ({error})") from None
    if (digest := weights_digest(state)) != description["digest"]:
        raise _damaged(folder, f"{WEIGHTS} has the digest {digest[:12]}, {DESCRIPTION} says {description['digest'][:12]}")
    try:
        config = from_dict(DvaeConfig, description["config"])
    except UserError as error:
        raise _damaged(folder, f"the config in {DESCRIPTION}: {error.cause}") from None
    with torch.device("meta"):
        dvae = Dvae(config)
    described, found = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (dvae.state_dict(), state))
    for name in sorted(described.keys() | found.keys()):
        if described.get(name) != found.get(name):
            shapes = f"{found.get(name, 'absent')} in {WEIGHTS}, {described.get(name, 'absent')} by the config in {DESCRIPTION}"
            raise _damaged(folder, f"{name} is {shapes}")
    dvae.load_state_dict(state, assign=True)
    return dvae


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} holds a damaged tokenizer: {what}", "copy both files again from the same tokenizer, or train or convert it again"
    )
