"""A trained discrete VAE as a tokenizer: loading, saving, encoding, decoding."""

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
"""Size of the largest activation in one pass, by device: small enough for the caches of a CPU, large enough
to keep a GPU busy. A pass has at least one image."""


class DvaeParts(nn.Module):
    """A discrete VAE as it is saved: the encoder, and the decoder if there is one."""

    def __init__(self, config: DvaeConfig, *, decoder: bool) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if decoder else None


def images_at_once(device: torch.device, channels: int, pixels: int) -> int:
    """Return how many images of a number of pixels go through in one pass.

    Args:
        device: Where the pass runs.
        channels: Channels of the largest activation, per pixel of the image.
        pixels: Pixels of an image.
    """
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * channels * pixels))


class DvaeTokenizer:
    """A frozen discrete VAE: `encode` returns the most probable tokens, without noise.

    It computes in float32 on a CPU. On a GPU the convolutions are float16, except for the layers next to the
    tokens, as in DALL-E's own code.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder | None, *, device: str | torch.device = "cpu"
    ) -> None:
        """Take over modules with their weights, and compute the digest of these weights.

        Args:
            encoder: With float32 weights. It is moved and converted, not copied.
            decoder: The same; None for a tokenizer that can only encode.
            device: Where it computes. Images and tokens are moved there; results stay there.
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
        """Encode uint8 [B, 3, h, w] as int64 [B, N]; see `ImageTokenizer.encode`."""
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
        """Decode int64 [B, N] to uint8 [B, 3, h, w]; see `ImageTokenizer.decode`."""
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
        folder: The tokenizer's folder, created if necessary; existing files are replaced.
        dvae: The trained model.
        image_size: Side in pixels of the images that it was trained on.
        training: How it was trained (settings, data, versions) or where it comes from; plain JSON types.
        figures: Its quality metrics, by name.
        half: Whether to store the weights as float16. They are read back as float32; the digest is that of
            the values read back.
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
    """Read a saved discrete VAE, float32 on the CPU.

    Raises:
        UserError: If the folder holds no tokenizer, a damaged one, or weights that do not fit its
            description.
    """
    return read_model(
        folder,
        lambda description: DvaeParts(
            from_dict(DvaeConfig, description["config"], at="config."),
            decoder=description.get("has_decoder", True),
        ),
    )
