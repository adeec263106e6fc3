"""Configuration of the model, its views, masks, target and optimizer, as frozen dataclasses. Imports nothing
heavy: the command line reads this file first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from beit.checks import (
    BelowOne,
    Byte,
    Channels,
    NotNegativeFloat,
    NotNegativeInt,
    Options,
    PositiveFloat,
    PositiveInt,
    Share,
    ValueRange,
)
from beit.errors import UserError

AbsoluteMode = Literal["bicubic", "bilinear"]
"""How absolute position embeddings are resampled for another grid of patches."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Vision Transformer. Defaults: ViT-B/16 as in the paper (arXiv 2106.08254, section 3)."""

    image_size: PositiveInt = 224
    """Side of the square patch view, in pixels."""

    patch_size: PositiveInt = 16
    """Side of a patch, in pixels."""

    dim: PositiveInt = 768
    """Width of a token: the length of its vector."""

    depth: PositiveInt = 12
    """Number of transformer blocks."""

    heads: PositiveInt = 12
    """Number of attention heads; each is `dim` / `heads` wide."""

    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP, as a multiple of `dim`."""

    drop_path: BelowOne = 0.1
    """Stochastic depth: probability of skipping the residual branches of the last block. It falls linearly to
    0 at the first block."""

    position: Literal["absolute", "relative", "relative-per-block"] = "absolute"
    """Position information. absolute: learned embeddings (the paper). relative: one table of relative biases,
    shared by all blocks (the released code, pretraining). relative-per-block: a separate table for every
    block (the released code, fine-tuning)."""

    layer_scale: PositiveFloat | None = None
    """Initial value of the LayerScale gains (released code: 0.1 for base, 1e-5 for large). None: no
    LayerScale (the paper)."""

    def check_together(self, option: Options) -> None:
        """Refuse image sizes that are no multiple of the patch size, and widths that are no multiple of the
        heads.
        """
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
        """Number of patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer turns the token view into visual tokens."""

    name: str = "scenes64"
    """A built-in tokenizer. scenes64: trained, comes with the package. random-dalle: DALL-E's encoder with
    random weights, only for benchmarks."""

    path: str | None = None
    """Folder of your own tokenizer, or of the run that trained it. None: the tokenizer `name`."""

    image_size: PositiveInt = 112
    """Side of the square token view, in pixels. For tokenizers with 8 pixels per token: 8 x the patches along
    one side."""


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How image files become pixels, and pixels become numbers: the same in training, in evaluation, and when
    the model is used later.
    """

    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    """Mean of each channel, between 0 and 1, subtracted from the patch view. The default is ImageNet's; the
    released ImageNet-22k weights need 0.5 0.5 0.5."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel; the patch view is divided by it after `mean` is subtracted."""

    exif_rotate: bool = True
    """Rotate images according to their EXIF orientation."""

    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Colour that shows through transparent pixels: red, green, blue, from 0 to 255."""

    max_pixels: PositiveInt = 100_000_000
    """Images with more pixels are quarantined without decoding them: a PNG of 48 kB can unpack to a
    gigabyte."""

    range: ValueRange = "auto"
    """Which values become black and white where a PNG or TIFF stores more than 8 bits. auto: all the bits
    that the file says it uses. full: all the bits that it stores. LO..HI: these two, such as 0..4095 for a
    camera of 12 bits; 32-bit and signed values need it. Images of 8 bits stay as they are."""

    channels: Channels | None = None
    """Channels of TIFF files with more than three that become red, green and blue, counted from 0: 3,2,1. Or
    one channel, as grey. None: files with channels beyond colours and transparency are quarantined."""

    def limits(self) -> tuple[float, float] | str:
        """The values of `range` as numbers; "auto" or "full" where it is one of these."""
        if self.range in ("auto", "full"):
            return self.range
        low, high = self.range.split("..")
        return float(low), float(high)

    def chosen_channels(self) -> tuple[int, ...] | None:
        """The numbers of `channels`."""
        return None if self.channels is None else tuple(map(int, self.channels.split(",")))

    def pixels(self) -> PixelConfig:
        """These settings alone, without those of a subclass."""
        return PixelConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(PixelConfig)}
        )


@dataclass(frozen=True, kw_only=True)
class ViewConfig(PixelConfig):
    """One random crop of an image, resized to the patch view and to the token view (the paper's section 2;
    microsoft/unilm, beit/datasets.py).
    """

    min_area: float = 0.08
    """Smallest area of a crop, as a share of the image. 1 together with `aspect` 1: always the centre
    square."""

    max_area: float = 1.0
    """Largest area of a crop, as a share of the image."""

    aspect: PositiveFloat = 4 / 3
    """Limit of a crop's aspect ratio: width / height is drawn between 1/aspect and aspect."""

    short_side: tuple[int, int] | None = None
    """Crop as DALL-E does: scale the shorter side to a random number of pixels between these two, but never
    up, then cut a square of the view's size at a random place in the image's largest square. None: crop by
    `min_area`, `max_area` and `aspect`."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""

    jitter: Share = 0.4
    """Brightness, contrast and saturation are multiplied by random factors in [1 - jitter, 1 + jitter]. 0: no
    change."""

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
    """Which patches are hidden (the paper's section 2.3). The number of hidden patches and the smallest block
    scale with the grid.
    """

    kind: str = "blockwise"
    """How masks are drawn. blockwise: rectangles (the paper's Algorithm 1). random: patches independently of
    each other. Or the name of a kind of your own (beit/pretraining/masking.py, `register_mask`)."""

    ratio: BelowOne = 75 / 196
    """Largest share of the patches that a mask hides. The default is the authors' 75 of 196. 0: none, which
    needs `target.positions` all."""

    min_block: PositiveInt | None = None
    """Smallest number of patches in a rectangle, when it is drawn. None: 16 for a grid of 196 patches, in
    proportion for other grids."""

    def budget(self, grid: int) -> int:
        """Largest number of patches that a mask hides on a grid of grid x grid patches: at least one, unless
        the ratio is 0.
        """
        return max(1, round(self.ratio * grid**2)) if self.ratio else 0

    def block(self, grid: int) -> int:
        """Smallest number of patches in a rectangle, when it is drawn."""
        return max(1, round(16 / 196 * grid**2)) if self.min_block is None else self.min_block


AskedPatches = Literal["hidden", "all"]


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the model predicts, and for which patches. The defaults are BEiT's, the alternatives those of its
    ablations (the paper's Table 4).
    """

    kind: str = "tokens"
    """What is predicted for a patch. tokens: its visual token. pixels: its normalised pixels, by regression.
    colour: its mean colour with 3 bits per channel (ViT). Or the name of a target of your own
    (beit/pretraining/targets, `register_target`)."""

    positions: AskedPatches = "hidden"
    """Patches that the loss covers. hidden: only hidden ones. all: visible ones too (the paper's "recover 100
    %"); `mask.ratio` may then be 0."""

    def check(self, mask: MaskConfig, *, at: str = "mask.") -> None:
        """Refuse a loss over no patches.

        Args:
            mask: Which patches are hidden.
            at: Path of the field's config in the configuration of the job.

        Raises:
            UserError: If no patch is hidden and the loss covers only hidden ones.
        """
        option = Options(mask, at)
        if self.positions == "hidden" and mask.ratio == 0:
            raise UserError(
                f"{option('ratio', 0)} hides no patch, and target.positions=hidden asks for hidden ones only",
                f"set target.positions=all, or {option('ratio', 0.38)}",
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warmup and cosine decay. Defaults: table 12 of the paper, base size."""

    global_batch_size: PositiveInt = 2048
    """Images per optimizer step, over all workers together."""

    peak_lr: NotNegativeFloat = 1.5e-3
    """Learning rate at the end of the warmup. It is not rescaled when `global_batch_size` changes."""

    min_lr: NotNegativeFloat = 1e-5
    """Learning rate at the end of the cosine decay."""

    warmup_steps: NotNegativeInt | None = 6250
    """Length of the linear warmup from 0, in optimizer steps. The default is the paper's 10 epochs of 625
    steps. None: `--warmup-epochs` of `beit finetune` says how long it is."""

    weight_decay: NotNegativeFloat = 0.05
    """Weight decay of all weights except biases, norms, gains, position embeddings and the class token."""

    beta1: BelowOne = 0.9
    """Decay rate of the gradient's running mean."""

    beta2: BelowOne = 0.999
    """Decay rate of the squared gradient's running mean."""

    eps: PositiveFloat = 1e-8
    """Added to the root of the squared gradient's running mean, so that no step divides by 0."""

    clip_norm: PositiveFloat | None = 3.0
    """Norm above which the gradient is scaled down to this norm (3.0 for base, 1.0 for large). None:
    never."""

    max_skipped: NotNegativeInt = 20
    """Steps in a row whose gradient may be infinite or NaN. Such a step is skipped: it leaves weights and
    optimizer as they are. One more in a row ends the run."""

    def check_together(self, option: Options) -> None:
        """Refuse a final learning rate above the peak."""
        if self.min_lr > self.peak_lr:
            raise UserError(
                f"{option('min_lr')} is not between 0 and {option('peak_lr')}",
                f"set {option('min_lr', f'{min(1e-5, self.peak_lr / 100):g}')}",
            )

    @property
    def warmup(self) -> int:
        """Steps of the warmup.

        Raises:
            UserError: If `warmup_steps` is None.
        """
        if self.warmup_steps is None:
            raise UserError(
                "optim.warmup_steps=None: this job counts its warmup in steps",
                "set optim.warmup_steps=0, or more",
            )
        return self.warmup_steps
