"""Draw how a pretrained model reconstructs hidden patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.config import AskedPatches, ViewConfig
from beit.images.pictures import Pixels, table
from beit.images.pixels import normalise
from beit.pretraining.model import Beit
from beit.pretraining.targets import Target

HIDDEN = (163, 170, 196)  # not grey: photographs have grey parts
RIGHT, WRONG = (38, 148, 92), (205, 62, 62)


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """A pretrained model's predictions for n images of N = grid x grid patches."""

    target: type[Target]
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
    """`true` as an image, [n, t, t, 3]. None, as are the next two, if it cannot be painted: a tokenizer
    without decoder."""

    painted_filled: Pixels | None
    """`true`, and `predicted` where the patch is hidden."""

    painted_predicted: Pixels | None
    """`predicted` alone."""

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Where the true class was predicted, [n, grid, grid]; None for a target that is not judged, such as
        pixels, which are never quite right.
        """
        return (self.predicted == self.true).reshape(self.masks.shape) if self.target.judged else None

    @property
    def accuracy(self) -> float:
        """Share of the patches asked for whose class was predicted; NaN if none is asked for, or for a
        target that is not judged.
        """
        return (
            float(self.right[self.asked].mean())
            if self.right is not None and self.asked.any()
            else float("nan")
        )


def reconstruct(
    model: Beit,
    target: Target,
    batch: Mapping[str, Tensor],
    view: ViewConfig,
    *,
    asked: AskedPatches = "hidden",
) -> Reconstructions:
    """Let a model fill in the hidden patches of a few images.

    Args:
        model: Put in evaluation mode for the call.
        target: What it was trained to predict.
        batch: "patch_view" uint8 [n, P, P, 3], "mask" bool [n, N], True = hidden, and the target's columns.
        view: Its mean and std normalise the pixels.
        asked: Which patches it was trained to predict.
    """
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
        painted = [
            None if (image := target.paint(values.cpu())) is None else image.cpu().numpy()
            for values in (true, filled, predicted)
        ]
    model.train(was_training)
    grid = round(hidden.shape[1] ** 0.5)
    masks = hidden.reshape(-1, grid, grid).cpu().numpy()
    return Reconstructions(
        target=type(target),
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


def reconstruction_sheet(shown: Reconstructions, *, side: int = 160) -> Image.Image:
    """A row an image: original, masked, the truth painted, predictions filled in, predictions alone, right
    and wrong patches.

    What cannot be painted or judged is left out.

    Args:
        shown: From `reconstruct`.
        side: Side of a picture, in pixels.
    """
    columns: list[tuple[str, Sequence[Pixels]]] = [("original", list(shown.images))]
    if shown.masks.any():
        columns.append(
            (
                "what the model sees",
                [cover(image, mask) for image, mask in zip(shown.images, shown.masks, strict=True)],
            )
        )
    if shown.painted_true is not None and shown.target.drawing.truth is not None:
        columns.append((shown.target.drawing.truth[0], list(shown.painted_true)))
    captions: dict[int, Sequence[str]] = {}
    for title, painted, wanted in (
        (FILLED_COLUMN, shown.painted_filled, shown.masks.any()),
        (PREDICTED_COLUMN, shown.painted_predicted, True),
    ):
        if painted is not None and wanted:
            columns.append((title, list(painted)))
    if shown.right is None:
        titles = [title for title, _ in columns]
        wanted_title = PREDICTED_COLUMN if shown.asked.all() else FILLED_COLUMN
        judged = titles.index(wanted_title) if wanted_title in titles else len(titles) - 1
        errors = np.square(shown.predicted - shown.true).mean(-1).reshape(shown.asked.shape)
        captions[judged] = [
            f"squared error {error[asked].mean():.3f}" if asked.any() else ""
            for error, asked in zip(errors, shown.asked, strict=True)
        ]
    else:
        captions[len(columns)] = [
            f"{int((good & asked).sum())} of {int(asked.sum())} {'' if asked.all() else 'hidden '}right"
            for good, asked in zip(shown.right, shown.asked, strict=True)
        ]
        columns.append(
            (
                "right and wrong",
                [judge(*one) for one in zip(shown.images, shown.asked, shown.right, strict=True)],
            )
        )
    return table(columns, side=side, captions=captions)


def cover(image: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """The image [P, P, 3] with the hidden patches of mask [grid, grid] covered."""
    covered: Pixels = np.where(
        to_pixels(mask, image.shape[0])[..., None], np.array(HIDDEN, dtype=np.uint8), image
    )
    return covered


def judge(image: Pixels, asked: NDArray[np.bool_], right: NDArray[np.bool_]) -> Pixels:
    """The image [P, P, 3] in pale grey; patches asked for [grid, grid] green where the class was right, red
    where not.
    """
    px = image.shape[0]
    pale = 160 + image.mean(axis=2, keepdims=True) * (95 / 255)
    colour = np.where(to_pixels(right, px)[..., None], np.array(RIGHT), np.array(WRONG))
    shown = np.where(
        to_pixels(asked, px)[..., None], 0.75 * colour + 0.25 * image.mean(axis=2, keepdims=True), pale
    )
    judged: Pixels = shown.astype(np.uint8)
    return judged


def to_pixels(patches: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """[grid, grid] -> [px, px]."""
    of_pixel = np.arange(px) * patches.shape[0] // px
    spread: NDArray[np.bool_] = patches[np.ix_(of_pixel, of_pixel)]
    return spread
