"""A trained discrete VAE as a tokenizer, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from beit.plain import from_dict, to_dict
from beit.tokenizer.config import PX_PER_TOKEN, DvaeConfig
from beit.tokenizer.dvae import PIXEL_MARGIN, Decoder, Dvae, Encoder, map_pixels, set_precision, unmap_pixels
from beit.tokenizer.folder import read_model, weights_digest, write_folder
from beit.tokenizer.protocol import check_images, side_of_grid

KIND = "dvae"

Part = TypeVar("Part", Encoder, Decoder)

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""Largest activation of one pass, by device: on a CPU what its caches hold, on a GPU what occupies it. One
image at least."""


class DvaeParts(nn.Module):
    """A discrete VAE as it is kept: the encoder, and the decoder where there is one."""

    def __init__(self, config: DvaeConfig, *, decoder: bool) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if decoder else None


def images_at_once(device: torch.device, channels: int, pixels: int) -> int:
    """Images of so many pixels that go through together, where an activation has this many channels
    a pixel.
    """
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * channels * pixels))


class DvaeTokenizer:
    """A frozen discrete VAE: `encode` takes the most probable token, without noise.

    float32 on a CPU. On a GPU the convolutions are float16 but for the layers at the tokens, as in DALL-E's
    own code.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder | None, *, device: str | torch.device = "cpu"
    ) -> None:
        """Take over modules with their weights; the digest is of the weights as they are now.

        Args:
            encoder: With float32 weights. It is moved and converted, not copied.
            decoder: The same, or None for a tokenizer that only encodes.
            device: Where images and tokens are taken to and tokens and images come from.
        """
        parts = {"encoder": encoder, "decoder": decoder}
        state = {
            f"{name}.{key}": value
            for name, part in parts.items()
            if part is not None
            for key, value in part.state_dict().items()
        }
        self.digest = weights_digest(state)
        self.device = torch.device(device)
        self.precision: Literal["float32", "float16"] = "float16" if self.device.type == "cuda" else "float32"
        self.px_per_token = PX_PER_TOKEN
        self.vocab_size = state["encoder.blocks.output.conv.b"].shape[0]
        self.has_decoder = decoder is not None
        self._width = int(state["encoder.blocks.input.b"].shape[0])
        self._encoder = self._freeze(encoder)
        self._decoder = None if decoder is None else self._freeze(decoder)

    def _freeze(self, part: Part) -> Part:
        part.eval().requires_grad_(False).to(self.device)
        set_precision(part, self.precision)
        for weights in part.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.contiguous(memory_format=torch.channels_last)
        return part

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, h, w] -> int64 [B, N]; see `ImageTokenizer.encode`."""
        check_images(images, PX_PER_TOKEN)
        at_once = images_at_once(self.device, self._width, images.shape[2] * images.shape[3])
        tokens = [
            self._encoder(map_pixels(part.to(self.device)).contiguous(memory_format=torch.channels_last))
            .argmax(1)
            .flatten(1)
            for part in torch.split(images, at_once)
        ]
        return torch.cat(tokens)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, N] -> uint8 [B, 3, h, w]; see `ImageTokenizer.decode`."""
        if self._decoder is None:
            raise ValueError("this tokenizer has no decoder")
        grid = side_of_grid(tokens)
        at_once = images_at_once(self.device, self._width, (grid * PX_PER_TOKEN) ** 2)
        images = [
            unmap_pixels(
                self._decoder.from_tokens(part.to(self.device).reshape(-1, grid, grid))[:, :3]
                .float()
                .sigmoid()
            )
            .mul(255)
            .round()
            .to(torch.uint8)
            for part in torch.split(tokens, at_once)
        ]
        return torch.cat(images)


def save_tokenizer(
    folder: Path,
    dvae: Dvae | DvaeParts,
    *,
    image_size: int,
    training: Mapping[str, Any],
    figures: Mapping[str, float],
    half: bool = False,
) -> None:
    """Write a discrete VAE into a folder as `tokenizer.safetensors` and `tokenizer.json`.

    Args:
        folder: The tokenizer's folder; it is made if it is absent, files of an earlier save are replaced.
        dvae: The trained model.
        image_size: Side in pixels of the images it was trained on.
        training: How it was trained (settings, data, versions) or where it comes from: plain JSON types.
        figures: What it reaches, by name.
        half: Keep the weights as float16. They are read back to float32, and the digest is of what is read
            back.
    """
    description = {
        "kind": KIND,
        "config": to_dict(dvae.config),
        "vocab_size": dvae.config.vocab_size,
        "px_per_token": PX_PER_TOKEN,
        "has_decoder": dvae.decoder is not None,
        "image_size": image_size,
        "pixels": {"scale": 1 - 2 * PIXEL_MARGIN, "offset": PIXEL_MARGIN},
        "training": dict(training),
        "figures": dict(figures),
    }
    write_folder(folder, dvae.state_dict(), description, half=half)


def load_dvae(folder: Path) -> DvaeParts:
    """Read a saved discrete VAE to float32 on the CPU.

    Raises:
        UserError: When the folder holds no tokenizer, a damaged one, or weights other than its description
            says.
    """
    return read_model(
        folder,
        lambda description: DvaeParts(
            from_dict(DvaeConfig, description["config"], at="config."),
            decoder=description.get("has_decoder", True),
        ),
    )
