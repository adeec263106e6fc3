"""Draw visual tokens: images next to their tokens, and examples of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.images.pictures import FAINT, FONT_PX, GAP_PX, LINE_PX, PAPER, Pixels, fit, shorten, table
from beit.tokenizer.codes import Code

SPREAD = (
    1.2207440846  # The root of x^4 = x + 1: multiples of 1/x, 1/x^2, 1/x^3, modulo 1, fill a cube evenly.
)


def token_sheet(
    images: Sequence[Pixels],
    tokens: Sequence[NDArray[np.int64]],
    decoded: Sequence[Pixels] | None,
    names: Sequence[str],
    *,
    side: int = 224,
) -> Image.Image:
    """Draw one row per image: the image, its visual tokens as coloured squares, the image decoded from them.

    Args:
        images: uint8 [T, T, 3] each.
        tokens: Their grids, [grid, grid] each. A token has the same colour in all of them.
        decoded: uint8 [T, T, 3] each, or None for a tokenizer without decoder.
        names: Text under each image.
        side: Side of a picture, in pixels.
    """
    columns: list[tuple[str, Sequence[Pixels]]] = [
        ("image", images),
        ("tokens", [colour_of(grid) for grid in tokens]),
    ]
    captions: dict[int, Sequence[str]] = {
        0: names,
        1: [f"{len(np.unique(grid))} different of {grid.size}" for grid in tokens],
    }
    if decoded is not None:
        columns.append(("decoded from the tokens", decoded))
        errors = [
            np.abs(one.astype(np.int16) - other).mean() / 255
            for one, other in zip(images, decoded, strict=True)
        ]
        captions[2] = [f"mean absolute error {error:.3f}" for error in errors]
    return table(columns, side=side, captions=captions)


def code_sheet(codes: Sequence[Code], *, examples: int, columns: int = 8, zoom: int = 4) -> Image.Image:
    """Draw single visual tokens: on the left what the decoder makes of each, then squares of images with it.

    Args:
        codes: From `beit.tokenizer.codes.describe_codes`.
        examples: Number of squares to leave room for, in two rows.
        columns: Tokens in a row.
        zoom: Factor by which squares are enlarged.
    """
    side = codes[0].examples.shape[1] * zoom
    first = 0 if codes[0].decoded is None else 2 * side + GAP_PX // 2
    step_x, step_y = first + -(-examples // 2) * side + 2 * GAP_PX, 2 * side + LINE_PX + GAP_PX
    sheet = Image.new(
        "RGB",
        (GAP_PX + min(columns, len(codes)) * step_x, GAP_PX + -(-len(codes) // columns) * step_y),
        PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, code in enumerate(codes):
        x, y = GAP_PX + number % columns * step_x, GAP_PX + number // columns * step_y
        if code.decoded is not None:
            sheet.paste(fit(code.decoded, 2 * side), (x, y))
        for place, square in enumerate(code.examples[:examples]):
            sheet.paste(fit(square, side), (x + first + place // 2 * side, y + place % 2 * side))
        draw.text(
            (x, y + 2 * side + 1),
            shorten(f"{code.token}: {code.share:.2%}", step_x - GAP_PX, font),
            FAINT,
            font,
        )
    return sheet


def colour_of(tokens: NDArray[np.int64]) -> Pixels:
    """Return a colour for each visual token, [grid, grid] -> uint8 [grid, grid, 3].

    Consecutive token numbers get dissimilar colours.
    """
    hue, saturation, value = (tokens[..., None] / SPREAD**power % 1 for power in (1, 2, 3))
    saturation, value = 0.5 + 0.5 * saturation, 0.55 + 0.45 * value
    pure = (np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1).clip(0, 1)
    colours: Pixels = np.rint(255 * value * (1 - saturation + saturation * pure)).astype(np.uint8)
    return colours
