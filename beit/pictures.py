"""Pictures of what goes in and what a model makes of it: arrays in, images out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

    from beit.config import AskedPatches, TargetKind, ViewConfig
    from beit.mim import Beit
    from beit.targets import Target
    from beit.tokenizer.codes import Code

Pixels = NDArray[np.uint8]

GAP_PX = 6
LINE_PX = 17
FONT_PX = 13
PAPER, INK, FAINT = (255, 255, 255), (34, 34, 34), (120, 120, 120)
HIDDEN = (163, 170, 196)  # not grey: photographs have grey parts
SPREAD = 1.2207440846  # x^4 = x + 1: multiples of 1/x, 1/x^2 and 1/x^3, modulo 1, fill a cube evenly
RIGHT, WRONG = (38, 148, 92), (205, 62, 62)


def contact_sheet(images: Sequence[Pixels], *, columns: int, side: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Images in rows, each as high as its highest image, a caption under each.

    Args:
        images: uint8 [H, W, 3] each, of any sizes: scaled to fit a square without being distorted.
        columns: Images in a row.
        side: Longer side of an image, in pixels.
        captions: One for each image; cut to its width.
    """
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    columns = max(1, min(columns, len(images)))
    tiles = [_fit(pixels, side) for pixels in images]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    below = GAP_PX + (LINE_PX if captions is not None else 0)
    sheet = Image.new("RGB", (GAP_PX + columns * (side + GAP_PX), GAP_PX + sum(heights) + below * len(rows)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    y = GAP_PX
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for place, tile in enumerate(row):
            x = GAP_PX + place * (side + GAP_PX)
            sheet.paste(tile, (x + (side - tile.width) // 2, y + (height - tile.height) // 2))
            if captions is not None:
                draw.text((x, y + height + 1), _shorten(captions[number * columns + place], side, font), INK, font)
        y += height + below
    return sheet


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """What a pretrained model says about n images of N = grid x grid patches."""

    kind: TargetKind
    """What it was trained to predict."""

    images: Pixels
    """The patch views, [n, P, P, 3]."""

    masks: NDArray[np.bool_]
    """[n, grid, grid], True = hidden."""

    asked: NDArray[np.bool_]
    """[n, grid, grid], True where training asks for the patch: the hidden ones, or all."""

    true: NDArray[Any]
    """Of every patch: its class, int [n, N], or its normalised pixels, float [n, N, O]."""

    predicted: NDArray[Any]
    """The model's for every patch, hidden or not, in the same form."""

    painted_true: Pixels | None
    """`true` as an image, [n, t, t, 3]. None, as are the next two, if it cannot be painted: a tokenizer without decoder."""

    painted_filled: Pixels | None
    """`true`, and `predicted` where the patch is hidden."""

    painted_predicted: Pixels | None
    """`predicted` alone."""

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Where the true class was predicted, [n, grid, grid]; None for pixels, which are never quite right."""
        return None if self.kind == "pixels" else (self.predicted == self.true).reshape(self.masks.shape)

    @property
    def accuracy(self) -> float:
        """Share of the patches asked for whose class was predicted; NaN for pixels, or if none is asked for."""
        return float(self.right[self.asked].mean()) if self.right is not None and self.asked.any() else float("nan")


def reconstruct(
    model: Beit, target: Target, batch: Mapping[str, Tensor], view: ViewConfig, *, asked: AskedPatches = "hidden"
) -> Reconstructions:
    """Let a model fill in the hidden patches of a few images.

    Args:
        model: Put in evaluation mode for the call.
        target: What it was trained to predict.
        batch: "patch_view" uint8 [n, P, P, 3], "mask" bool [n, N], True = hidden, and the target's columns.
        view: Its mean and std normalise the pixels.
        asked: Which patches it was trained to predict.
    """
    import torch

    from beit.pixels import normalise

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batch = {name: column.to(device) for name, column in batch.items()}
        hidden = batch["mask"].flatten(1)
        everywhere = torch.arange(hidden.shape[1], device=device).expand(hidden.shape)
        pixels = normalise(batch["patch_view"], view)
        predicted = target.guess(model.predict(pixels, hidden, everywhere))
        true = target.truth(batch, pixels, everywhere)
        filled = torch.where(hidden if true.ndim == 2 else hidden[..., None], predicted, true)
        painted = [None if (image := target.paint(values.cpu())) is None else image.cpu().numpy() for values in (true, filled, predicted)]
    model.train(was_training)
    grid = round(hidden.shape[1] ** 0.5)
    masks = hidden.reshape(-1, grid, grid).cpu().numpy()
    return Reconstructions(
        kind=target.kind,
        images=batch["patch_view"].cpu().numpy(),
        masks=masks,
        asked=masks if asked == "hidden" else np.ones_like(masks),
        true=true.cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        painted_true=painted[0],
        painted_filled=painted[1],
        painted_predicted=painted[2],
    )


FILLED_COLUMN, PREDICTED_COLUMN = "hidden ones predicted", "all predicted"
TRUE_COLUMN: dict[TargetKind, str] = {"tokens": "true tokens, decoded", "pixels": "true pixels", "colour": "true colours"}


def reconstruction_sheet(shown: Reconstructions, *, side: int = 160) -> Image.Image:
    """A row an image: original, masked, the truth painted, predictions filled in, predictions alone, right and wrong patches.

    What cannot be painted or judged is left out.

    Args:
        shown: From `reconstruct`.
        side: Side of a picture, in pixels.
    """
    columns: list[tuple[str, Sequence[Pixels]]] = [("original", list(shown.images))]
    if shown.masks.any():
        columns.append(("what the model sees", [cover(image, mask) for image, mask in zip(shown.images, shown.masks, strict=True)]))
    # True pixels are the original once more.
    if shown.painted_true is not None and shown.kind != "pixels":
        columns.append((TRUE_COLUMN[shown.kind], list(shown.painted_true)))
    captions: dict[int, Sequence[str]] = {}
    for title, painted, wanted in (
        (FILLED_COLUMN, shown.painted_filled, shown.masks.any()),
        (PREDICTED_COLUMN, shown.painted_predicted, True),
    ):
        if painted is not None and wanted:
            columns.append((title, list(painted)))
    if shown.right is None:
        judged = [title for title, _ in columns].index(PREDICTED_COLUMN if shown.asked.all() else FILLED_COLUMN)
        errors = np.square(shown.predicted - shown.true).mean(-1).reshape(shown.asked.shape)
        captions[judged] = [
            f"squared error {error[asked].mean():.3f}" if asked.any() else "" for error, asked in zip(errors, shown.asked, strict=True)
        ]
    else:
        captions[len(columns)] = [
            f"{int((good & asked).sum())} of {int(asked.sum())} {'' if asked.all() else 'hidden '}right"
            for good, asked in zip(shown.right, shown.asked, strict=True)
        ]
        columns.append(("right and wrong", [judge(*one) for one in zip(shown.images, shown.asked, shown.right, strict=True)]))
    return table(columns, side=side, captions=captions)


def token_sheet(
    images: Sequence[Pixels],
    tokens: Sequence[NDArray[np.int64]],
    decoded: Sequence[Pixels] | None,
    names: Sequence[str],
    *,
    side: int = 224,
) -> Image.Image:
    """A row an image: the image, its visual tokens as coloured squares, what the decoder paints from them.

    Args:
        images: uint8 [T, T, 3] each.
        tokens: Their grids, [grid, grid] each. One token has one colour in all of them.
        decoded: uint8 [T, T, 3] each, or None for a tokenizer without decoder.
        names: What to write under each image.
        side: Side of a picture, in pixels.
    """
    columns: list[tuple[str, Sequence[Pixels]]] = [("image", images), ("tokens", [colour_of(grid) for grid in tokens])]
    captions: dict[int, Sequence[str]] = {0: names, 1: [f"{len(np.unique(grid))} different of {grid.size}" for grid in tokens]}
    if decoded is not None:
        columns.append(("decoded from the tokens", decoded))
        errors = [np.abs(one.astype(np.int16) - other).mean() / 255 for one, other in zip(images, decoded, strict=True)]
        captions[2] = [f"mean absolute error {error:.3f}" for error in errors]
    return table(columns, side=side, captions=captions)


def code_sheet(codes: Sequence[Code], *, examples: int, columns: int = 8, zoom: int = 4) -> Image.Image:
    """Single visual tokens: what the decoder paints from each, on the left, and squares of images that got it.

    Args:
        codes: From `beit.tokenizer.codes.describe_codes`.
        examples: Squares to leave room for, in two rows.
        columns: Tokens in a row.
        zoom: Factor by which squares are enlarged.
    """
    side = codes[0].examples.shape[1] * zoom
    first = 0 if codes[0].decoded is None else 2 * side + GAP_PX // 2
    step_x, step_y = first + -(-examples // 2) * side + 2 * GAP_PX, 2 * side + LINE_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + min(columns, len(codes)) * step_x, GAP_PX + -(-len(codes) // columns) * step_y), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, code in enumerate(codes):
        x, y = GAP_PX + number % columns * step_x, GAP_PX + number // columns * step_y
        if code.decoded is not None:
            sheet.paste(_fit(code.decoded, 2 * side), (x, y))
        for place, square in enumerate(code.examples[:examples]):
            sheet.paste(_fit(square, side), (x + first + place // 2 * side, y + place % 2 * side))
        draw.text((x, y + 2 * side + 1), _shorten(f"{code.token}: {code.share:.2%}", step_x - GAP_PX, font), FAINT, font)
    return sheet


def colour_of(tokens: NDArray[np.int64]) -> Pixels:
    """Visual tokens [grid, grid] -> a colour each, uint8 [grid, grid, 3]. Tokens with numbers next to each other look unlike."""
    hue, saturation, value = (tokens[..., None] / SPREAD**power % 1 for power in (1, 2, 3))
    saturation, value = 0.5 + 0.5 * saturation, 0.55 + 0.45 * value
    pure = (np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1).clip(0, 1)
    colours: Pixels = np.rint(255 * value * (1 - saturation + saturation * pure)).astype(np.uint8)
    return colours


def table(columns: Sequence[tuple[str, Sequence[Pixels]]], *, side: int, captions: Mapping[int, Sequence[str]]) -> Image.Image:
    """Columns of pictures, a title over each and, for the columns named in `captions`, a line under each picture."""
    step, rows = side + GAP_PX, len(columns[0][1])
    sheet = Image.new("RGB", (GAP_PX + len(columns) * step, GAP_PX + LINE_PX + rows * (step + LINE_PX)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for column, (title, pictures) in enumerate(columns):
        x = GAP_PX + column * step
        draw.text((x, GAP_PX - 2), _shorten(title, side, font), INK, font)
        for row, pixels in enumerate(pictures):
            y = GAP_PX + LINE_PX + row * (step + LINE_PX)
            sheet.paste(_fit(pixels, side), (x, y))
            if column in captions:
                draw.text((x, y + side + 1), _shorten(captions[column][row], side, font), FAINT, font)
    return sheet


def cover(image: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """The image [P, P, 3] with the hidden patches of mask [grid, grid] covered."""
    covered: Pixels = np.where(to_pixels(mask, image.shape[0])[..., None], np.array(HIDDEN, dtype=np.uint8), image)
    return covered


def judge(image: Pixels, asked: NDArray[np.bool_], right: NDArray[np.bool_]) -> Pixels:
    """The image [P, P, 3] in pale grey; patches asked for [grid, grid] green where the class was right, red where not."""
    px = image.shape[0]
    pale = 160 + image.mean(axis=2, keepdims=True) * (95 / 255)
    colour = np.where(to_pixels(right, px)[..., None], np.array(RIGHT), np.array(WRONG))
    shown = np.where(to_pixels(asked, px)[..., None], 0.75 * colour + 0.25 * image.mean(axis=2, keepdims=True), pale)
    judged: Pixels = shown.astype(np.uint8)
    return judged


def to_pixels(patches: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """[grid, grid] -> [px, px]."""
    of_pixel = np.arange(px) * patches.shape[0] // px
    spread: NDArray[np.bool_] = patches[np.ix_(of_pixel, of_pixel)]
    return spread


def _fit(pixels: Pixels, side: int) -> Image.Image:
    """Scale [H, W, 3] so that its longer side is `side`; small pictures by whole pixels, so that one sees what they are made of."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 2 and scale == int(scale) else Image.Resampling.BICUBIC)


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut the text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
