"""The discrete VAE of DALL-E: an encoder from pixels to token logits, a decoder from tokens to pixels.

The structure is that of openai/DALL-E (dall_e/encoder.py, decoder.py, utils.py). Widths, depth and vocabulary
can be chosen; four groups and three poolings are fixed, so a token always stands for 8 x 8 pixels. Parameters
have the published names, such as `blocks.group_1.block_1.res_path.conv_1.w`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.checks import check
from beit.tokenizer.config import GROUPS, DvaeConfig

PIXEL_MARGIN = 0.1
"""`map_pixels` keeps this distance from 0 and 1, where the logit-Laplace density is undefined."""


# B images of H x W pixels, h x w = H/8 x W/8 visual tokens, V different tokens
def map_pixels(images: Tensor) -> Tensor:
    """Map pixels, uint8 or float in [0, 1], to float in [0.1, 0.9], where logits are moderate; any shape."""
    scaled = images.float().div_(255) if images.dtype == torch.uint8 else images
    return (1 - 2 * PIXEL_MARGIN) * scaled + PIXEL_MARGIN


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Invert `map_pixels`: float [...] -> float [...] clamped to [0, 1]."""
    return ((mapped - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


class Conv2d(nn.Module):
    """A convolution of stride 1 that keeps the size of the image.

    Its weights are zero until `initialise` or a state dict sets them.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(c_out, c_in, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, c_in, h, w] to [B, c_out, h, w], in the precision of the weights."""
        return F.conv2d(x.to(self.w.dtype), self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """id(x) + gain * res(x), with four convolutions in the residual branch, each after a ReLU."""

    def __init__(self, c_in: int, c_out: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        hidden = c_out // 4
        channels = (c_in, hidden, hidden, hidden, c_out)
        self.gain = gain
        self.id_path = Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        layers: list[tuple[str, nn.Module]] = []
        for i, kernel in enumerate(kernels):
            # The identity path still needs the input of the first ReLU; the others may overwrite theirs.
            layers.append((f"relu_{i + 1}", nn.ReLU(inplace=i > 0)))
            layers.append((f"conv_{i + 1}", Conv2d(channels[i], channels[i + 1], kernel)))
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: [B, c_in, h, w] -> [B, c_out, h, w]."""
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.gain)


def _group(
    c_in: int, c_out: int, kernels: tuple[int, int, int, int], config: DvaeConfig
) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        (f"block_{i + 1}", Block(c_out if i else c_in, c_out, kernels, config.gain))
        for i in range(config.blocks)
    )


class Encoder(nn.Module):
    """From pixels to logits of the visual tokens."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        check(config, "dvae.")
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(3, config.encoder_width, 7))
        c_in = config.encoder_width
        for g in range(GROUPS):
            c_out = config.encoder_width * 2**g
            group = _group(c_in, c_out, (3, 3, 3, 1), config)
            if g < GROUPS - 1:
                group["pool"] = nn.MaxPool2d(2)
            layers[f"group_{g + 1}"] = nn.Sequential(group)
            c_in = c_out
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(c_in, config.vocab_size, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, mapped: Tensor) -> Tensor:
        """Return logits [B, V, H/8, W/8] of mapped pixels, float [B, 3, H, W]."""
        logits: Tensor = self.blocks(mapped)
        return logits


class Decoder(nn.Module):
    """From visual tokens (one-hot or mixtures) to the distribution of every pixel: location and log scale."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        check(config, "dvae.")
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            input=Conv2d(config.vocab_size, config.bottleneck, 1)
        )
        c_in = config.bottleneck
        for g in range(GROUPS):
            c_out = config.decoder_width * 2 ** (GROUPS - 1 - g)
            group = _group(c_in, c_out, (1, 3, 3, 3), config)
            if g < GROUPS - 1:
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            layers[f"group_{g + 1}"] = nn.Sequential(group)
            c_in = c_out
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(c_in, 6, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Return three locations and three log scales, [B, 6, 8h, 8w].

        Args:
            codes: Float [B, V, h, w], non-negative, with sum 1 over V.
        """
        statistics: Tensor = self.blocks(codes)
        return statistics

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Return `forward` of one-hot codes, without building them: int64 [B, h, w] -> [B, 6, 8h, 8w]."""
        first, *rest = self.blocks
        first = cast(Conv2d, first)
        # A 1 x 1 convolution of a one-hot vector picks a column of the weights.
        x = F.embedding(tokens, first.w[:, :, 0, 0].t()).add(first.b).permute(0, 3, 1, 2)
        for layer in rest:
            x = layer(x)
        return x


class Dvae(nn.Module):
    """Encoder and decoder. All weights are zero until `initialise` or a state dict sets them."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise every convolution, in order: weights from N(0, 1 / (c_in k^2)), biases 0."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, Conv2d):
                layer.w.normal_(0, layer.w[0].numel() ** -0.5, generator=generator)
                layer.b.zero_()


def set_precision(module: Encoder | Decoder, precision: Literal["float32", "float16"]) -> None:
    """Convert the weights, and so the arithmetic, as the authors do.

    With float16, the layer next to the tokens stays in float32: the encoder's output, the decoder's input.
    """
    at_tokens = "blocks.output.conv" if isinstance(module, Encoder) else "blocks.input"
    for name, layer in module.named_modules():
        if isinstance(layer, Conv2d):
            layer.to(torch.float16 if precision == "float16" and name != at_tokens else torch.float32)
