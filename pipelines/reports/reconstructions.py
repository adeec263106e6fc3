"""The report's sheet of reconstructions: what a pretrained model fills in."""

from __future__ import annotations

import math

from beit.pretraining.pictures import (
    FILLED_COLUMN,
    PREDICTED_COLUMN,
    TRUE_COLUMN,
    Reconstructions,
    reconstruction_sheet,
)
from pipelines.reports.page import Picture
from pipelines.reports.run import NOUNS


def reconstruction_picture(shown: Reconstructions) -> Picture:
    """The sheet of reconstructions with a legend that says what each column is."""
    legend = [("original", "The view as the data pipeline delivers it.")]
    if shown.masks.any():
        legend.append(
            (
                "what the model sees",
                "The same with the hidden patches covered; the model gets a learned mask token there.",
            )
        )
    noun, everywhere = NOUNS[shown.kind], bool(shown.asked.all())
    truth = {
        "tokens": (
            "What the tokenizer keeps of the original. This is the ceiling: its blur is the "
            "tokenizer's, not the model's."
        ),
        "colour": "The mean colour of every patch, at 3 bits a channel: all that the model is asked for.",
        "pixels": "",
    }[shown.kind]
    if shown.painted_true is None:
        legend.append(
            ("no decoded columns", "This tokenizer has no decoder, so tokens cannot be shown as images.")
        )
    else:
        legend += [(TRUE_COLUMN[shown.kind], truth)] if truth else []
        if shown.masks.any():
            asked = "" if everywhere else ": what pretraining asks for"
            legend.append(
                (
                    FILLED_COLUMN,
                    f"The true {noun}s, with the model's predictions in the hidden patches only{asked}.",
                )
            )
        trained = "" if everywhere else " It was never trained on visible ones, so expect less there."
        legend.append((PREDICTED_COLUMN, f"The model's prediction for every patch.{trained}"))
    if shown.right is not None:
        text = f"Green: the model's first choice is the true {noun}. Red: it is not."
        if shown.kind == "tokens":
            text += " Many tokens look alike, so a red patch can still decode well."
        if not math.isnan(shown.accuracy):
            text += (
                f" Here {shown.accuracy:.1%} of the {'patches' if everywhere else 'hidden patches'} are "
                "right."
            )
        legend.append(("right and wrong", text))
    return Picture(title="What the model fills in", image=reconstruction_sheet(shown), legend=legend)
