"""The report's sheet of reconstructions, which shows how a pretrained model fills in hidden patches."""

from __future__ import annotations

import math

from beit.pretraining.pictures import (
    FILLED_COLUMN,
    PREDICTED_COLUMN,
    Reconstructions,
    reconstruction_sheet,
)
from pipelines.reports.page import Picture


def reconstruction_picture(shown: Reconstructions) -> Picture:
    """Draw the sheet of reconstructions, with a legend that explains each column."""
    legend = [("original", "The view as the data pipeline delivers it.")]
    if shown.masks.any():
        legend.append(
            (
                "what the model sees",
                "The same with the hidden patches covered; the model gets a learned mask token there.",
            )
        )
    noun, drawing, everywhere = shown.target.noun, shown.target.drawing, bool(shown.asked.all())
    if shown.painted_true is None:
        legend += [drawing.unpainted] if drawing.unpainted else []
    else:
        legend += [drawing.truth] if drawing.truth else []
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
        if drawing.judged:
            text += f" {drawing.judged}"
        if not math.isnan(shown.accuracy):
            text += (
                f" Here {shown.accuracy:.1%} of the {'patches' if everywhere else 'hidden patches'} are "
                "right."
            )
        legend.append(("right and wrong", text))
    return Picture(title="What the model fills in", image=reconstruction_sheet(shown), legend=legend)
