"""unilm's own tokenizer, which the BEiT authors trained: `DiscreteVAE` of microsoft/unilm.

From `beit/modeling_discrete_vae.py` there. It is smaller and simpler than DALL-E's: strided convolutions with
one residual block per resolution, a codebook of embeddings, and a decoder that outputs pixels, not their
distribution (arXiv 2106.08254, appendix C, compares the two). Parameters have the released code's names, such
as `encoder.1.net.0.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.checks import PositiveInt, check
from beit.plain import from_dict
from beit.tokenizer.folder import read_model, weights_digest
from beit.tokenizer.frozen import images_at_once
from beit.tokenizer.protocol import check_images, side_of_grid

KIND = "unilm"

IMAGE_SIZE = 112
"""Side of the images that the released code tokenises by default, in pixels."""

HALF_RANGE = 0.5
"""Mean and standard deviation that map pixels from [0, 1] to [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class UnilmConfig:
    """Size of the released code's tokenizer. Defaults: those of `get_d_vae` in `beit/utils.py` there."""

    vocab_size: PositiveInt = 8192
    """Number of different visual tokens."""

    codebook_dim: PositiveInt = 512
    """Size of a token's embedding."""

    width: PositiveInt = 256
    """Channels of all hidden layers."""

    layers: PositiveInt = 3
    """Number of times that the resolution is halved: a token stands for a square with a side of 2 ** `layers`
    pixels."""

    @property
    def px_per_token(self) -> int:
        """Side of the square of pixels that a token stands for."""
        return int(2**self.layers)


# B images of H x W pixels, h x w visual tokens, V different tokens, D the size of an embedding
class Residual(nn.Module):
    """x + three convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: [B, width, h, w] -> [B, width, h, w]."""
        changed: Tensor = self.net(x)
        return x + changed


class UnilmDvae(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: UnilmConfig) -> None:
        super().__init__()
        check(config, "unilm.")
        self.config = config
        self.codebook = nn.Embedding(config.vocab_size, config.codebook_dim)
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for layer in range(config.layers):
            down = nn.Conv2d(config.width if layer else 3, config.width, 4, stride=2, padding=1)
            up = nn.ConvTranspose2d(
                config.width if layer else config.codebook_dim, config.width, 4, stride=2, padding=1
            )
            self.encoder.extend([nn.Sequential(down, nn.ReLU()), Residual(config.width)])
            self.decoder.extend([nn.Sequential(up, nn.ReLU()), Residual(config.width)])
        self.encoder.append(nn.Conv2d(config.width, config.vocab_size, 1))
        self.decoder.append(nn.Conv2d(config.width, 3, 1))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Decode tokens int64 [B, h, w] to pixels float [B, 3, H, W], about -1 to 1."""
        pixels: Tensor = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        return pixels


class UnilmTokenizer:
    """The released code's tokenizer, frozen. It computes in float32 on every device, like that code."""

    precision = "float32"
    has_decoder = True

    def __init__(self, model: UnilmDvae, *, device: str | torch.device = "cpu") -> None:
        """Take over a model with its weights, and compute the digest of these weights.

        Args:
            model: It is moved, not copied.
            device: Where it computes. Images and tokens are moved there; results stay there.
        """
        self.digest = weights_digest(model.state_dict())
        self.device = torch.device(device)
        self.px_per_token = model.config.px_per_token
        self.vocab_size = model.config.vocab_size
        # Channels per pixel of the image of the largest activation: at half the resolution, or the logits.
        self._channels = max(1, model.config.width // 4, model.config.vocab_size // self.px_per_token**2)
        self._model = model.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 [B, 3, h, w] as int64 [B, N]; see `ImageTokenizer.encode`."""
        check_images(images, self.px_per_token)
        at_once = images_at_once(self.device, self._channels, images.shape[2] * images.shape[3])
        tokens = [
            self._model.encoder(part.to(self.device).float().div_(255).sub_(HALF_RANGE).div_(HALF_RANGE))
            .argmax(1)
            .flatten(1)
            for part in torch.split(images, at_once)
        ]
        return torch.cat(tokens)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode int64 [B, N] to uint8 [B, 3, h, w]; see `ImageTokenizer.decode`."""
        grid = side_of_grid(tokens)
        at_once = images_at_once(self.device, self._channels, (grid * self.px_per_token) ** 2)
        images = [
            self._model.from_tokens(part.to(self.device).reshape(-1, grid, grid))
            .mul_(HALF_RANGE)
            .add_(HALF_RANGE)
            .clamp_(0, 1)
            .mul_(255)
            .round_()
            .to(torch.uint8)
            for part in torch.split(tokens, at_once)
        ]
        return torch.cat(images)


def load_unilm(folder: Path) -> UnilmDvae:
    """Read a converted tokenizer of the released code, float32 on the CPU.

    Raises:
        UserError: If the folder holds no tokenizer, a damaged one, or weights that do not fit its
            description.
    """
    return read_model(
        folder, lambda description: UnilmDvae(from_dict(UnilmConfig, description["config"], at="config."))
    )
