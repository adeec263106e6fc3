"""What a BEiT is made of, as frozen dataclasses. Imports nothing heavy: the command line reads this file
first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from beit.checks import (
    BelowOne,
    Byte,
    NotNegativeFloat,
    NotNegativeInt,
    Options,
    PositiveFloat,
    PositiveInt,
    Share,
)
from beit.errors import UserError

AbsoluteMode = Literal["bicubic", "bilinear"]
"""How absolute positions are resampled for another grid of patches."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Vision Transformer. Defaults: ViT-B/16 as in the paper (arXiv 2106.08254, section 3)."""

    image_size: PositiveInt = 224
    """Side of the square patch view, in pixels."""

    patch_size: PositiveInt = 16
    """Side of a patch, in pixels."""

    dim: PositiveInt = 768
    """Width of a token."""

    depth: PositiveInt = 12
    """Number of transformer blocks."""

    heads: PositiveInt = 12
    """Attention heads; `dim` is divided among them."""

    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP, as a multiple of `dim`."""

    drop_path: BelowOne = 0.1
    """Probability of skipping the last block's branches; earlier blocks less, linearly down to 0."""

    position: Literal["absolute", "relative", "relative-per-block"] = "absolute"
    """absolute: learned embeddings (the paper). relative: one table of biases shared by all blocks (the
    released code, pretraining). relative-per-block: a table of its own for every block (the released code,
    fine-tuning)."""

    layer_scale: PositiveFloat | None = None
    """Initial value of the LayerScale gains (released code: 0.1 for base, 1e-5 for large). None: no
    LayerScale (the paper)."""

    def check_together(self, option: Options) -> None:
        """Refuse what cannot be divided: images into patches, the width among the heads."""
        if self.image_size % self.patch_size:
            nearest = max(1, round(self.image_size / self.patch_size)) * self.patch_size
            raise UserError(
                f"{option('image_size')} is not a multiple of {option('patch_size')}",
                f"set {option('image_size', nearest)}",
            )
        if self.dim % self.heads:
            nearest = max(1, round(self.dim / self.heads)) * self.heads
            raise UserError(
                f"{option('dim')} cannot be divided among {option('heads')}", f"set {option('dim', nearest)}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer turns the token view into visual tokens."""

    name: str = "scenes64"
    """scenes64: trained, ships with the package. random-dalle: DALL-E's encoder with random weights, for
    measuring."""

    path: str | None = None
    """A tokenizer folder of your own, or the run that trained it; stands instead of `name`."""

    image_size: PositiveInt = 112
    """Side of the square token view, in pixels: 8 x the patch grid, for tokenizers of 8 pixels a token."""


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How files become pixels and pixels numbers: the same in training and testing, and for whoever uses the
    model.
    """

    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    """Subtracted from the patch view's channels in [0, 1]. ImageNet's for ImageNet-1k; 0.5 for the released
    22k weights."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """The channels of the patch view are divided by this after `mean` is subtracted."""

    exif_rotate: bool = True
    """Turn images as their EXIF orientation says."""

    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Colour under transparent pixels."""

    max_pixels: PositiveInt = 100_000_000
    """Images larger than this are not decoded but quarantined: a 48 kB PNG can unpack to a gigabyte."""

    def pixels(self) -> PixelConfig:
        """These settings alone, without those of a subclass."""
        return PixelConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(PixelConfig)}
        )


@dataclass(frozen=True, kw_only=True)
class ViewConfig(PixelConfig):
    """From an encoded image to one random crop at two sizes (the paper's section 2, microsoft/unilm
    beit/datasets.py).
    """

    min_area: float = 0.08
    """Smallest share of the image's area that a crop takes. 1 with `aspect` 1: the centre square, no
    randomness."""

    max_area: float = 1.0
    """Largest share of the image's area that a crop takes."""

    aspect: PositiveFloat = 4 / 3
    """Crops are between 1/aspect and aspect wide for their height."""

    short_side: tuple[int, int] | None = None
    """Crop as DALL-E does: scale the shorter side to a whole number of pixels between these two, but never
    up, and cut a square of the view's size out of the image's largest square anywhere. None: by area and
    aspect."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""

    jitter: Share = 0.4
    """Brightness, contrast and saturation change by factors in [1 - jitter, 1 + jitter]. 0: never."""

    def check_together(self, option: Options) -> None:
        """Refuse ranges that are empty."""
        if not 0 < self.min_area <= self.max_area <= 1:
            raise UserError(
                f"{option('min_area')} and {option('max_area')} are not 0 < min <= max <= 1",
                f"set {option('min_area', 0.08)} and {option('max_area', 1)} for the paper's crops",
            )
        if self.aspect < 1:
            raise UserError(
                f"{option('aspect')} is below 1", f"set {option('aspect', f'{1 / self.aspect:.4g}')}"
            )
        if self.short_side is not None and not 0 < self.short_side[0] <= self.short_side[1]:
            raise UserError(
                f"{option('short_side')} is not 0 < first <= second",
                f"set {option('short_side', (288, 384))} as DALL-E has it",
            )


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches are hidden (the paper's section 2.3). Budget and smallest block scale with the grid."""

    kind: str = "blockwise"
    """blockwise: rectangles (the paper's Algorithm 1). random: independent patches. Or the name of a kind of
    your own (beit/pretraining/masking.py, `register_mask`)."""

    ratio: BelowOne = 75 / 196
    """Share of the patches that may be hidden. The authors' budget: 75 of 196. 0: none, for
    `target.positions` all."""

    min_block: PositiveInt | None = None
    """Fewest patches a rectangle is drawn with. None: 16 of 196 patches, scaled to the grid."""

    def budget(self, grid: int) -> int:
        """Most patches that a mask hides on a grid of grid x grid patches; at least one unless the ratio is
        0.
        """
        return max(1, round(self.ratio * grid**2)) if self.ratio else 0

    def block(self, grid: int) -> int:
        """Fewest patches a rectangle is drawn with."""
        return max(1, round(16 / 196 * grid**2)) if self.min_block is None else self.min_block


AskedPatches = Literal["hidden", "all"]


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What is predicted of which patches. Defaults: BEiT. The rest is for its ablations (the paper's Table
    4).
    """

    kind: str = "tokens"
    """tokens: the tokenizer's. pixels: the patch's normalised pixels, by regression. colour: its mean colour,
    3 bits a channel (ViT). Or the name of a target of your own (beit/pretraining/targets,
    `register_target`)."""

    positions: AskedPatches = "hidden"
    """hidden: the loss is over hidden patches. all: over visible ones too ("recover 100 %"); `mask.ratio` may
    then be 0."""

    def check(self, mask: MaskConfig, *, at: str = "mask.") -> None:
        """Refuse a loss over nothing.

        Args:
            mask: Which patches are hidden.
            at: Where it stands in the configuration of the job.

        Raises:
            UserError: If none is hidden, and only hidden ones are asked for.
        """
        option = Options(mask, at)
        if self.positions == "hidden" and mask.ratio == 0:
            raise UserError(
                f"{option('ratio', 0)} hides no patch, and target.positions=hidden asks for hidden ones only",
                f"set target.positions=all, or {option('ratio', 0.38)}",
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, linear warmup, cosine decay. Defaults: table 12 of the paper, base size."""

    global_batch_size: PositiveInt = 2048
    """Images per optimizer step, over all workers."""

    peak_lr: NotNegativeFloat = 1.5e-3
    """Learning rate at the end of the warmup, for `global_batch_size` images a step. Never rescaled."""

    min_lr: NotNegativeFloat = 1e-5
    """Learning rate at the end of the cosine decay."""

    warmup_steps: NotNegativeInt | None = 6250
    """Steps of the linear warmup from 0. The paper: 10 epochs of 625 steps. None: what `--warmup-epochs` of
    `beit finetune` says."""

    weight_decay: NotNegativeFloat = 0.05
    """Decay of all weights but biases, norms, gains, position embeddings and the class token."""

    beta1: BelowOne = 0.9
    """Decay of the gradient's running mean."""

    beta2: BelowOne = 0.999
    """Decay of the squared gradient's running mean."""

    eps: PositiveFloat = 1e-8
    """Added to the root of the squared gradient's mean."""

    clip_norm: PositiveFloat | None = 3.0
    """Gradient norm above which gradients are scaled down (3.0 for base, 1.0 for large). None: never."""

    def check_together(self, option: Options) -> None:
        """Refuse a learning rate that would grow from its peak."""
        if self.min_lr > self.peak_lr:
            raise UserError(
                f"{option('min_lr')} is not between 0 and {option('peak_lr')}",
                f"set {option('min_lr', f'{min(1e-5, self.peak_lr / 100):g}')}",
            )

    @property
    def warmup(self) -> int:
        """Steps of the warmup.

        Raises:
            UserError: If they are not known.
        """
        if self.warmup_steps is None:
            raise UserError(
                "optim.warmup_steps=None: this job counts its warmup in steps",
                "set optim.warmup_steps=0, or more",
            )
        return self.warmup_steps
